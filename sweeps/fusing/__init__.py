"""Sets of frozen features that are read together: which go together, and what that buys."""
