"""What a search has found, of any Task: the answer, the table of trials, the record of the test, its folder."""
