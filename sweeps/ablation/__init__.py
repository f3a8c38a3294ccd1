"""The noise of pre-training as a sweep: networks that are trained under it, and what becomes of them."""
