"""Train a network that is cut after one of its blocks as a classifier: from its pre-trained weights, or from scratch
(Denoising Diffusion Autoencoders, Xiang et al. 2023, sections 3.2 and 4.1.2)."""

import copy
import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ddae.backbones import Backbone
from ddae.datasets import Dataset
from ddae.heads import StackedHead, find_head
from ddae.heads.linear import StackedLinear
from ddae.heads.training import StackedNetworks
from ddae.noise import image_noise
from ddae.pooling import pool
from ddae.scaling import Standardise
from ddae.views import flip_and_crop

VERSION = 1
"""Raise it when the same training would give other numbers."""
MAX_NORM = 1.0
"""Gradients are clipped to this norm."""


@dataclass(frozen=True)
class Recipe:
    """How a paper trains. Learning rates are for one device."""

    optimizer: str
    """adam or sgd."""
    learning_rates: tuple[float, ...]
    """What a search tries, the paper's among them."""
    decay: str
    """cosine to 0, or step: a tenth every eight epochs."""
    batch_size: int
    num_epochs: int
    noised: bool = False
    """Whether images are noised at the timestep, or come as they are."""

    def rate(self, step: int, num_steps: int, steps_per_epoch: int, warmup_steps: int = 0) -> float:
        """Share of the learning rate at a step; a linear warm-up comes first."""
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if self.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))
        return 0.1 ** (step // steps_per_epoch // 8)


RECIPES = {
    "ddae": Recipe("adam", (3e-4, 1e-3, 3e-3), "cosine", batch_size=128, num_epochs=30),
    "ddae-dit": Recipe("adam", (2e-5, 8e-5, 3e-4), "cosine", batch_size=8, num_epochs=50),
    "gans": Recipe("sgd", (3e-4, 1e-3, 1e-2), "step", batch_size=64, num_epochs=28, noised=True),
}
"""DDAE's tables 7 and 8; Diffusion Models Beat GANs on Image Classification (Mukhopadhyay et al. 2023), section 4.1."""


@dataclass(frozen=True)
class Cut:
    """Where the network is cut, and how its map is read."""

    block: str
    timestep: int
    pooling: int
    head: str
    noised: bool = False


@dataclass(frozen=True)
class Schooling:
    """One training: of what, on how many labels, how long and how fast."""

    init: str
    """finetune, scratch, or frozen."""
    num_labels: int
    learning_rate: float
    weight_decay: float
    head_start: str
    """fresh, or probe: the head that was fitted on the frozen features."""
    seed: int


class CutClassifier(nn.Module):
    """The network up to a block, its map pooled to a grid, and a head on top."""

    def __init__(self, backbone: Backbone, cut: Cut, head: StackedHead):
        super().__init__()
        self.backbone, self.cut, self.network, self.head = backbone, cut, backbone.network, head

    def forward(self, x: Tensor) -> Tensor:
        """Encoded images, noised or not, [N, *shape] -> class scores [N, K]."""
        return self.head(self.features(x))[0]

    def features(self, x: Tensor) -> Tensor:
        """[N, C, p, p], float32."""
        block = self.cut.block
        return self.backbone.capture(x, self.cut.timestep, [block], self._pooled)[block].float()

    def _pooled(self, map: Tensor) -> Tensor:
        return pool(map, self.cut.pooling)


def cut_network(backbone: Backbone, cut: Cut) -> tuple[Backbone, list[str]]:
    """A copy of the backbone that can be trained, and the names of the parameters that the block depends on; the others
    lie past the cut and stay frozen."""
    backbone = copy.deepcopy(backbone)
    backbone.network.requires_grad_(True)
    x = torch.zeros(1, *backbone.encoder.shape, device=backbone.settings.device)
    with torch.enable_grad():
        backbone.capture(x, cut.timestep, [cut.block], lambda map: map)[cut.block].float().sum().backward()
    kept = [name for name, parameter in backbone.network.named_parameters() if parameter.grad is not None]
    for name, parameter in backbone.network.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(name in kept)
    return backbone, kept


def reinitialise(network: nn.Module, seed: int) -> None:
    """Draw all weights anew, as PyTorch initialises each kind of layer; parameters of no layer are drawn from
    N(0, 0.02), and named."""
    drawn: set[int] = set()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in network.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
                drawn |= {id(parameter) for parameter in module.parameters()}
        others = [(name, each) for name, each in network.named_parameters() if id(each) not in drawn]
        for _, parameter in others:
            nn.init.normal_(parameter, std=0.02)
    if others:
        logging.getLogger("ddae").warning(
            "%d parameters belong to no layer that PyTorch initialises, such as %s; they start from N(0, 0.02)",
            len(others),
            others[0][0],
        )


def fresh_head(name: str, features: Tensor, num_classes: int, seed: int) -> StackedHead:
    """An untrained head for features [N, C, p, p], without normalisation, that can be trained."""
    family, sizes = find_head(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = family.empty(torch.zeros_like(features, device="cpu"), num_classes, *sizes)
        if isinstance(head, StackedLinear):
            bound = features[0].numel() ** -0.5  # as nn.Linear begins
            head.weight.uniform_(-bound, bound)
            head.bias.uniform_(-bound, bound)
    for module in head.modules():
        if isinstance(module, Standardise):
            module.mean.zero_()
            module.scale.fill_(1)
    return trainable(head, name).to(features.device)


def trainable(head: StackedHead, name: str) -> StackedHead:
    """A head of one setting whose weights are parameters; its normalisation stays as it is."""
    if isinstance(head, StackedLinear):
        for each in ("weight", "bias"):
            tensor = getattr(head, each).clone()
            delattr(head, each)
            head.register_parameter(each, nn.Parameter(tensor))
    elif isinstance(head, StackedNetworks):
        head.networks.requires_grad_(True)
    else:
        raise ValueError(f"head={name!r} has no weights that can be trained; choose linear, mlp, cnn or attention")
    return head


class Training:
    """Trains a classifier step by step. Order, augmentation and noise depend on (seed, step) alone, so that a resumed
    training needs no generator's state.

    num_steps: of the whole schedule, whether or not the training goes to its end.
    """

    def __init__(
        self,
        model: CutClassifier,
        trained: Mapping[str, nn.Parameter],
        dataset: Dataset,
        rows: np.ndarray,
        recipe: Recipe,
        schooling: Schooling,
        num_steps: int,
        warmup_epochs: int = 0,
    ):
        self.model, self.trained, self.dataset, self.rows = model, trained, dataset, rows
        self.recipe, self.schooling, self.num_steps = recipe, schooling, num_steps
        self.batch_size = min(recipe.batch_size, len(rows))
        self.steps_per_epoch = max(1, len(rows) // self.batch_size)
        self.warmup_steps = min(warmup_epochs * self.steps_per_epoch, num_steps // 2)
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}
        options = {"lr": schooling.learning_rate, "weight_decay": schooling.weight_decay}
        self.optimizer = kinds[recipe.optimizer](list(trained.values()), **options)
        self.step, self.loss = 0, math.nan

    def run(self, until: int) -> Iterator[int]:
        """Take steps until so many are taken; yields after each."""
        self.model.train()
        while self.step < until:
            self._take(self.step)
            self.step += 1
            yield self.step

    def _take(self, step: int) -> None:
        rate = self.recipe.rate(step, self.num_steps, self.steps_per_epoch, self.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schooling.learning_rate * rate
        rows = self._batch(step)
        x = inputs_of(self.model, self.dataset, rows, self.schooling.seed, view=1 + step // self.steps_per_epoch)
        labels = torch.from_numpy(self.dataset.images.labels[rows]).to(x.device)
        loss = functional.cross_entropy(self.model(x), labels)
        if not torch.isfinite(loss):
            raise ValueError(
                f"learning_rate={self.schooling.learning_rate:g}: the loss is not a number at step {step}; give a "
                "lower one"
            )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.trained.values()), MAX_NORM)
        self.optimizer.step()
        self.loss = float(loss.detach())

    def _batch(self, step: int) -> np.ndarray:
        """The images of a step: each epoch has an order of its own, and leaves out a last smaller batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.schooling.seed, epoch]).permutation(len(self.rows))
        return self.rows[order[place * self.batch_size : (place + 1) * self.batch_size]]

    def state(self) -> bytes:
        buffer = io.BytesIO()
        tensors: dict[str, Any] = {name: tensor.detach() for name, tensor in self.trained.items()}
        buffers = dict(self.model.named_buffers())
        torch.save(
            {"step": self.step, "tensors": tensors, "buffers": buffers, "optimizer": self.optimizer.state_dict()},
            buffer,
        )
        return buffer.getvalue()

    def load(self, state: bytes) -> None:
        kept = torch.load(io.BytesIO(state), weights_only=True, map_location=self.model.backbone.settings.device)
        with torch.no_grad():
            for name, tensor in kept["tensors"].items():
                self.trained[name].copy_(tensor)
            for name, tensor in self.model.named_buffers():
                tensor.copy_(kept["buffers"][name])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.step = kept["step"]


def saved_step(state: bytes) -> int:
    """How many steps a state has taken."""
    return torch.load(io.BytesIO(state), weights_only=True, map_location="cpu")["step"]


def inputs_of(model: CutClassifier, dataset: Dataset, rows: np.ndarray, seed: int, view: int = 0) -> Tensor:
    """What the network is given of these images: encoded, and noised where the cut says so. view: 0 is the image as it
    is, others flip and crop it first."""
    backbone, cut = model.backbone, model.cut
    images = dataset.images.read(rows)
    x0 = backbone.encode(flip_and_crop(images, rows, seed, view) if view else images).clone()
    if not cut.noised:
        return x0
    noise = image_noise(rows, backbone.encoder.shape, cut.timestep, seed, view=view)
    return backbone.noised(x0, noise, cut.timestep)


@torch.inference_mode()
def scores_of(model: CutClassifier, dataset: Dataset, rows: np.ndarray, seed: int, batch_size: int = 64) -> Tensor:
    """Class scores of images as they are, [N, K], on the CPU."""
    model.eval()
    starts = range(0, len(rows), batch_size)
    batches = (inputs_of(model, dataset, rows[start : start + batch_size], seed) for start in starts)
    return torch.cat([model(x).float().cpu() for x in batches])


@torch.inference_mode()
def frozen_features(
    model: CutClassifier, dataset: Dataset, rows: np.ndarray, seed: int, batch_size: int = 64
) -> Tensor:
    """[N, C, p, p] of images as they are, on the CPU."""
    model.eval()
    starts = range(0, len(rows), batch_size)
    batches = (inputs_of(model, dataset, rows[start : start + batch_size], seed) for start in starts)
    return torch.cat([model.features(x).cpu() for x in batches])
