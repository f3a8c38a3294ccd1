"""Images from a diffusion network, and how far they are from real ones."""
