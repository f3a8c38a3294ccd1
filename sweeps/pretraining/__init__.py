"""The training of a diffusion network: its flags, how it runs, and what it leaves behind."""

from sweeps.pretraining.publish import publish, train
from sweeps.pretraining.setup import recipe_of, set_up

__all__ = ["publish", "recipe_of", "set_up", "train"]
