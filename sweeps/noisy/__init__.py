"""One head on frozen features for every noise level, and what it is compared with."""
