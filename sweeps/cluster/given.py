"""What is known of the machines before Ray is loaded."""

import os

FOR_FITS = 0.5
"""The part of every GPU that workers leave to the fits of trials, where these want GPUs."""


def address() -> str:
    """RAY_ADDRESS; empty for this machine."""
    return os.environ.get("RAY_ADDRESS", "").strip()
