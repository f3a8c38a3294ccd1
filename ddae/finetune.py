"""Train a network that is cut after one of its blocks as a classifier: from its pre-trained weights, or from scratch
(Denoising Diffusion Autoencoders, Xiang et al. 2023, sections 3.2 and 4.1.2)."""

import copy
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ddae.backbones import Backbone
from ddae.heads import StackedHead, find_head
from ddae.heads.linear import StackedLinear
from ddae.heads.training import StackedNetworks
from ddae.noise import image_noise
from ddae.pooling import pool
from ddae.scaling import Standardise

VERSION = 2
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
    momentum: float = 0.0
    """Used by sgd alone."""
    weight_decays: tuple[float, ...] = (0.0,)

    def rate(self, step: int, num_steps: int, steps_per_epoch: int, warmup_steps: int = 0) -> float:
        """Share of the learning rate at a step; a linear warm-up comes first."""
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if self.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))
        return 0.1 ** (step // steps_per_epoch // 8)

    def make_optimizer(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, learning_rate, self.momentum, weight_decay=weight_decay)
        return torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)


RECIPES = {
    "ddae": Recipe("adam", (3e-4, 1e-3, 3e-3), "cosine", batch_size=128, num_epochs=30),
    "ddae-dit": Recipe("adam", (2e-5, 8e-5, 3e-4), "cosine", batch_size=8, num_epochs=50),
    "gans": Recipe("sgd", (3e-4, 1e-3, 1e-2), "step", batch_size=64, num_epochs=28, noised=True),
    "classifier": Recipe(
        "sgd", (0.03, 0.1), "cosine", batch_size=128, num_epochs=200, momentum=0.9, weight_decays=(5e-4,)
    ),
}
"""DDAE's tables 7 and 8, of which classifier is for networks that are built to classify; Diffusion Models Beat GANs on
Image Classification (Mukhopadhyay et al. 2023), section 4.1."""


@dataclass(frozen=True)
class Cut:
    """Where the network is cut, and how its map is read."""

    block: str
    timestep: int
    pooling: int
    head: str
    noised: bool = False


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
        map = self.backbone.capture(x, self.cut.timestep, [block], lambda map: map)[block]
        return pool(map, self.cut.pooling).float()  # not in capture(): gradient checkpointing may be under way there


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


def batch_places(num_images: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Which images, of num_images, a step sees, int [batch_size]: each epoch has an order of its own, and leaves out a
    last smaller batch."""
    epoch, place = divmod(step, max(1, num_images // batch_size))
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    return order[place * batch_size : (place + 1) * batch_size]


def noised_if(model: CutClassifier, x0: Tensor, rows: np.ndarray, seed: int, view: int = 0) -> Tensor:
    """What the network is given of encoded images: noised where the cut says so, by a noise of each row and view."""
    if not model.cut.noised:
        return x0
    noise = image_noise(rows, model.backbone.encoder.shape, model.cut.timestep, seed, view=view)
    return model.backbone.noised(x0, noise, model.cut.timestep)


@torch.inference_mode()
def scores_of(model: CutClassifier, batches: Iterable[Tensor]) -> Tensor:
    """Class scores of inputs, [N, K], on the CPU."""
    model.eval()
    return torch.cat([model(x).float().cpu() for x in batches])


@torch.inference_mode()
def frozen_features(model: CutClassifier, batches: Iterable[Tensor]) -> Tensor:
    """[N, C, p, p] of inputs, on the CPU."""
    model.eval()
    return torch.cat([model.features(x).cpu() for x in batches])
