"""A text embedding learned in place of the null text ("Learnable" in Table 4 of Diffusion Models Beat GANs on Image
Classification, Mukhopadhyay et al. 2023)."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
    """That of the text; 0 leaves it as it is."""
    seed: int = 0
    """Of the head's first weights, the order of the images and their noise."""


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
        maps = self.backbone.capture(x_t, self.timestep, [self.block], self._pooled)
        return self.head(maps[self.block])

    def _pooled(self, map: Tensor) -> Tensor:
        return pool(map, self.pooling).flatten(1).float()


class TextTraining:
    """Trains a probe epoch by epoch; what it knows between two epochs is in state()."""

    def __init__(self, probe: TextProbe, recipe: TextRecipe):
        self.probe, self.recipe = probe, recipe
        probe.text.requires_grad_(recipe.text_rate > 0)
        groups = [
            {"params": [*probe.head.parameters()], "peak": recipe.head_rate},
            {"params": [probe.text], "peak": recipe.text_rate},
        ]
        self.optimizer = torch.optim.Adam(groups)
        self.val_accuracies: list[float] = []
        """After each epoch."""
        self.best_text = probe.text.detach().clone()
        """That of the epoch whose val accuracy was the highest."""

    @property
    def epoch(self) -> int:
        return len(self.val_accuracies)

    @property
    def finished(self) -> bool:
        return self.epoch == self.recipe.num_epochs

    def num_steps(self, train: Encoded) -> int:
        """Of an epoch, which leaves out a last smaller batch."""
        return max(1, len(train.rows) // self.recipe.batch_size)

    def train_epoch(self, train: Encoded, val: Encoded) -> Iterator[float]:
        """The loss of every step; when all are taken, val has been measured. Order and noise depend on (seed, epoch)
        alone, so that a resumed training needs no generator's state."""
        num_steps = self.num_steps(train)
        order = torch.randperm(
            len(train.rows), generator=torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.epoch)
        )
        for step in range(num_steps):
            progress = (self.epoch + step / num_steps) / self.recipe.num_epochs
            batch = order[step * self.recipe.batch_size :][: self.recipe.batch_size].numpy()
            yield self.step(train, batch, (1 + math.cos(math.pi * progress)) / 2)
        accuracy = self.accuracy(val)
        if accuracy > max(self.val_accuracies, default=-1.0):
            self.best_text = self.probe.text.detach().clone()
        self.val_accuracies.append(accuracy)

    def step(self, train: Encoded, batch: np.ndarray, rate: float) -> float:
        """The loss of a batch, after which head and text are updated. rate: share of the peak learning rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["peak"]
        scores = self.probe.train()(train.x0[batch], self._noise(train, batch, self.epoch))
        loss = functional.cross_entropy(scores, train.labels[batch].to(scores.device))
        self.optimizer.zero_grad()
        loss.backward()
        if self.recipe.text_rate > 0 and self.probe.text.grad is None:
            raise ValueError(f"block={self.probe.block!r} does not depend on the text, which enters behind it")
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is not a number in epoch {self.epoch + 1}; lower the learning rates")
        self.optimizer.step()
        return float(loss.detach())

    @torch.inference_mode()
    def accuracy(self, images: Encoded) -> float:
        """With the noise that features of these images are extracted with."""
        num_right = 0
        for batch in np.array_split(np.arange(len(images.rows)), -(-len(images.rows) // self.recipe.batch_size)):
            scores = self.probe.eval()(images.x0[batch], self._noise(images, batch, draw=0))
            num_right += int((scores.argmax(1).cpu() == images.labels[batch]).sum())
        return num_right / len(images.rows)

    def _noise(self, images: Encoded, batch: np.ndarray, draw: int) -> Tensor:
        shape = tuple(images.x0.shape[1:])
        return image_noise(images.rows[batch], shape, self.probe.timestep, self.recipe.seed, draw)

    def state(self) -> dict[str, Any]:
        return {
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "val_accuracies": self.val_accuracies,
            "best_text": self.best_text,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.probe.load_state_dict(state["probe"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.val_accuracies = list(state["val_accuracies"])
        self.best_text = state["best_text"].to(self.best_text)
