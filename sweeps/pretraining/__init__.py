"""The training of a diffusion network: its flags, what it costs, how it runs, and what it leaves behind."""

from sweeps.pretraining.estimate import estimate
from sweeps.pretraining.publish import publish, tracked_training, train
from sweeps.pretraining.setup import recipe_of, set_up

__all__ = ["estimate", "publish", "recipe_of", "set_up", "tracked_training", "train"]
