"""Every pair of a network and a dataset, searched side by side, and what carries over from one to another."""
