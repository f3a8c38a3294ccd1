"""Commands at the top, how they run on a cluster in tuning/."""
