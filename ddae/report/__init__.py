"""Figures, and the page that holds them: arrays in, pictures and HTML out."""
