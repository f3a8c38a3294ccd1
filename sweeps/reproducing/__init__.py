"""Published numbers measured again: the table of them, the files they take, and the runs."""
