"""A text embedding learned in place of the null text ("Learnable" in Table 4 of Diffusion Models Beat GANs on Image
Classification, Mukhopadhyay et al. 2023)."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ddae.backbones.base import Backbone, Block
from ddae.backbones.stable_diffusion import TextInputs, text_inputs
from ddae.datasets import Dataset
from ddae.noise import image_noise
from ddae.pooling import pool


@dataclass(frozen=True)
class TextRecipe:
    """Adam, with a cosine schedule to 0 over all steps."""

    num_epochs: int = 15
    batch_size: int = 32
    head_rate: float = 1e-3
    """Peak learning rate of the head."""
    text_rate: float = 1e-3
    """Peak learning rate of the text; 0 leaves it as it is."""
    seed: int = 0
    """Decides the head's first weights, the order of the images and their noise."""


@dataclass(frozen=True)
class Encoded:
    """A split as the network takes it, on the CPU."""

    rows: np.ndarray
    x0: Tensor
    labels: Tensor


def encode_split(
    backbone: Backbone, dataset: Dataset, split: str, track: Callable[[range], Iterable[int]] = iter
) -> Encoded:
    """track: what shows how far an iteration over the batches is."""
    rows = dataset.splits[split]
    starts = track(range(0, len(rows), 64))
    x0 = torch.cat([backbone.encode(dataset.images.read(rows[start : start + 64])).cpu() for start in starts])
    return Encoded(rows, x0, torch.from_numpy(dataset.labels(split)))


class TextProbe(nn.Module):
    """A linear head on one block's pooled map at one timestep, and the text [T, width] on which the map depends."""

    def __init__(self, backbone: Backbone, block: Block, timestep: int, pooling: int, num_classes: int, seed: int):
        super().__init__()
        if backbone.settings.precision == "float16":
            raise ValueError("precision='float16' is too coarse for gradients; choose bfloat16 or float32")
        self.block, self.timestep, self.pooling = block.name, timestep, pooling
        self.text = nn.Parameter(text_inputs(backbone).text.clone())
        self.backbone = copy.copy(backbone)  # frozen, and no module: its weights are no parameters of the probe
        self.backbone.inputs = TextInputs(self.text)
        width = block.channels * pooling**2
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            head = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, num_classes))
        self.head = head.to(self.text.device)

    def forward(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Class scores [N, K]."""
        x_t = self.backbone.noised(x0.to(self.text.device), noise, self.timestep)
        map = self.backbone.capture(x_t, self.timestep, [self.block], self._pooled)[self.block]
        if self.text.requires_grad and torch.is_grad_enabled() and not map.requires_grad:
            raise ValueError(f"block={self.block!r} does not depend on the text, which enters behind it")
        return self.head(map)

    def _pooled(self, map: Tensor) -> Tensor:
        return pool(map, self.pooling).flatten(1).float()


@lru_cache(maxsize=2)
def shuffled(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the images in an epoch."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).numpy()


class TextTraining:
    """Trains a probe, and measures it on val after every epoch. An epoch leaves out a last smaller batch.

    encoded: gives a split, train or val, when it is first needed.
    """

    autocast, max_gradient_norm, accumulate = None, math.inf, 1

    def __init__(self, probe: TextProbe, recipe: TextRecipe, num_train: int, encoded: Callable[[str], Encoded]):
        self.probe, self.text_recipe, self.num_train, self.encoded = probe, recipe, num_train, encoded
        probe.text.requires_grad_(recipe.text_rate > 0)
        groups = [
            {"params": [*probe.head.parameters()], "lr": recipe.head_rate},
            {"params": [probe.text], "lr": recipe.text_rate},
        ]
        self.network: nn.Module = probe
        self.optimizer = torch.optim.Adam(groups)
        self.val_accuracies: list[float] = []
        """After each epoch."""
        self.best_text = probe.text.detach().clone()
        """The text of the epoch whose val accuracy was the highest."""

    @property
    def recipe(self) -> dict[str, Any]:
        return asdict(self.text_recipe)

    @property
    def batch_size(self) -> int:
        return self.text_recipe.batch_size

    @property
    def epoch_steps(self) -> int:
        return max(1, self.num_train // self.batch_size)

    @property
    def num_steps(self) -> int:
        return self.text_recipe.num_epochs * self.epoch_steps

    def start(self, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        """Nothing: the probe stands on its backbone's device already. One worker alone can train it."""

    def schedule(self, step: int) -> float:
        epoch, index = divmod(step, self.epoch_steps)
        progress = (epoch + index / self.epoch_steps) / self.text_recipe.num_epochs
        return (1 + math.cos(math.pi * progress)) / 2

    def loss(self, network: nn.Module, step: int) -> Tensor:
        epoch, index = divmod(step, self.epoch_steps)
        train = self.encoded("train")
        order = shuffled(self.num_train, self.text_recipe.seed, epoch)
        batch = order[index * self.batch_size :][: self.batch_size]
        scores = network(train.x0[batch], self._noise(train, batch, draw=epoch))
        return functional.cross_entropy(scores, train.labels[batch].to(scores.device))

    def after_step(self, step: int) -> dict[str, float]:
        if (step + 1) % self.epoch_steps:
            return {}
        accuracy = self.accuracy(self.encoded("val"))
        if accuracy > max(self.val_accuracies, default=-1.0):
            self.best_text = self.probe.text.detach().clone()
        self.val_accuracies.append(accuracy)
        return {"val_accuracy": accuracy}

    @torch.inference_mode()
    def accuracy(self, images: Encoded) -> float:
        """The accuracy with the noise that features of these images are extracted with."""
        num_right = 0
        for batch in np.array_split(np.arange(len(images.rows)), -(-len(images.rows) // self.batch_size)):
            scores = self.probe.eval()(images.x0[batch], self._noise(images, batch, draw=0))
            num_right += int((scores.argmax(1).cpu() == images.labels[batch]).sum())
        return num_right / len(images.rows)

    def _noise(self, images: Encoded, batch: np.ndarray, draw: int) -> Tensor:
        shape = tuple(images.x0.shape[1:])
        return image_noise(images.rows[batch], shape, self.probe.timestep, self.text_recipe.seed, draw)

    def state_dict(self) -> dict[str, Any]:
        return {
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "val_accuracies": self.val_accuracies,
            "best_text": self.best_text,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.probe.load_state_dict(state["probe"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.val_accuracies = list(state["val_accuracies"])
        self.best_text = state["best_text"].to(self.best_text)
