"""Features on demand under heads: the search for the best frozen feature of a network."""
