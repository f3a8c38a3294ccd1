"""The science: images in, a number out, on one device."""
