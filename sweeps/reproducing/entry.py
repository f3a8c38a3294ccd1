"""What an entry of the table of published numbers is made of: a network, images, a recipe, and the number to expect."""

from dataclasses import dataclass
from typing import Literal

from ddae.heads import Recipe
from ddae.heads.recipes import OPTIMIZERS

VIEWS = 10
"""Stored views of each training image where no number is given: as many as DDAE's latents have (appendix A)."""


@dataclass(frozen=True)
class Training:
    """How a paper trains a head."""

    optimizer: Literal["adam", "sgd", "lars"]
    learning_rate: float
    batch_size: int
    epochs: int
    step_epochs: int = 0
    """The learning rate falls to a tenth every so many epochs; 0 is a cosine."""
    by_epoch: bool = False
    """Whether the cosine falls after each epoch."""
    warmup_epochs: int = 0

    @property
    def recipe(self) -> Recipe:
        """On features as they are."""
        return Recipe(
            ((self.learning_rate, 0.0),), self.batch_size, self.epochs, 0, OPTIMIZERS[self.optimizer],
            self.step_epochs, self.by_epoch, self.warmup_epochs, as_they_are=True,
        )  # fmt: skip

    @property
    def text(self) -> str:
        falls = f"a tenth every {self.step_epochs} epochs" if self.step_epochs else "cosine"
        rises = f", {self.warmup_epochs} epochs of warm-up" if self.warmup_epochs else ""
        return (
            f"{self.optimizer} at {self.learning_rate:g}, batches of {self.batch_size:,}, {self.epochs} epochs, "
            f"{falls}{rises}"
        )


@dataclass(frozen=True)
class Probe:
    """A head on a frozen feature."""

    block: str
    """Empty where the paper does not say it; then --block and --timestep must."""
    timestep: int
    head: str = "ddae"
    """As layer_noise.py takes it; ddae is a linear layer."""
    pooling: int = 1
    training: Training | None = None
    """None where the head's own way is the protocol, on images as they are."""
    augment: str = "flip"
    """How views change an image: a name in AUGMENTATIONS."""
    kind = "frozen feature"

    @property
    def text(self) -> str:
        if not self.training:
            return "as the head is always fitted"
        return f"{self.training.text}; augmented by {self.augment}"


@dataclass(frozen=True)
class FineTuning:
    """A network that is cut after a block and trained."""

    block: str
    timestep: int
    recipe: Literal["ddae", "ddae-dit", "gans", "classifier"]
    learning_rate: float
    epochs: int
    augment: str = "flip+crop"
    pooling: int = 1
    head: str = "linear"
    init: Literal["finetune", "scratch"] = "finetune"
    kind = "trained network"

    @property
    def text(self) -> str:
        return (
            f"recipe {self.recipe} at {self.learning_rate:g}, {self.epochs} epochs, from "
            f"{'pre-trained' if self.init == 'finetune' else 'random'} weights; augmented by {self.augment}"
        )


@dataclass(frozen=True)
class Generation:
    """Samples and their FID."""

    sampler: Literal["ddim", "ancestral", "heun"]
    steps: int
    num_samples: int = 50_000
    kind = "samples"

    @property
    def text(self) -> str:
        return f"{self.num_samples:,} images by {self.sampler} in {self.steps} steps, FID against all training images"


@dataclass(frozen=True)
class OwnScores:
    """A classifier as it is: the largest of its own class scores."""

    block: str
    """The block that holds the scores."""
    timestep: int = 0
    kind = "classifier"
    text = "nothing is trained"


Recipes = Probe | FineTuning | Generation | OwnScores


@dataclass(frozen=True)
class Model:
    """A network, and the files that it takes."""

    files: tuple[tuple[str, str], ...] = ()
    """(path below --models, where to get it)"""
    backbone: str = "{}"
    """As --backbone names it, {} standing for the first file."""


@dataclass(frozen=True)
class Entry:
    """A published number."""

    name: str
    source: str
    """Paper and table."""
    published: float | None
    """Accuracy in percent, or FID; None where a figure alone shows it."""
    tolerance: float
    """How far what is measured may lie off: two standard errors of the test set and what seeds are worth."""
    model: str
    """A name in MODELS."""
    dataset: str
    recipe: Recipes
    image_size: int = 0
    num_steps: int = 18
    """Length of EDM's schedule."""
    differs: tuple[str, ...] = ()
    """What is done otherwise than in the paper, beside what all entries of a kind share."""
    says: str = ""
    """What the paper says in words, or what else is to be known of its number."""

    @property
    def measure(self) -> str:
        return "FID" if isinstance(self.recipe, Generation) else "accuracy"

    @property
    def published_text(self) -> str:
        if self.published is None:
            return "not printed"
        return f"{self.published:g}" if self.measure == "FID" else f"{self.published:g} %"
