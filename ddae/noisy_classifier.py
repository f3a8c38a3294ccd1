"""Classify noised images at every noise level by one head on frozen features (Denoising Diffusion Autoencoders, Xiang
et al. 2023, equation 5): p(y | x_t) = g(f(x_t) + tau(t)).

A noise level is log sigma = ln(sigma / alpha) of x_t = alpha x0 + sigma noise: one coordinate for DDPM, EDM and flow.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ddae.backbones import SHIPPED, Backbone, Settings, load_backbone
from ddae.backbones.base import token_grid
from ddae.noise_levels import log_sigma
from ddae.pooling import pool
from ddae.winner import FILES, copy_file, read_head, sha256, with_files

__all__ = ["NoisyClassifier", "NoisyHead", "log_sigma"]

RECORD, HEAD = "noisy_classifier.json", "noisy_head.safetensors"
VERSION = 1
"""Raise it when a saved classifier would be read differently."""
FREQUENCIES = 1 / 16, 4.0
"""The slowest and the fastest sinusoid, in radians a unit of log sigma: the fastest turns once in 1.6, so that levels
between those of a training look like their neighbours."""


class NoisyHead(nn.Module):
    """g(f + tau): Linear, SiLU, Linear on features that are standardised by the mean and the deviation of their noise
    level, and tau a Linear, SiLU, Linear of sinusoids of log sigma, where there is one.

    levels: log sigmas, growing, float [L]. mean, deviation: of the features at each, float [L, d], or [1, d] where all
    levels share them. width: hidden units, as a multiple of d.
    """

    levels: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        levels: Tensor,
        mean: Tensor,
        deviation: Tensor,
        num_classes: int,
        width: int = 2,
        embedding: bool = False,
    ):
        super().__init__()
        if len(mean) not in (1, len(levels)) or not (levels.diff() > 0).all():
            raise ValueError(f"{len(levels)} levels, which must grow, have {len(mean)} means; give one, or one a level")
        self.width, self.embedding, num_features = width, embedding, mean.shape[1]
        self.register_buffer("levels", levels.float())
        self.register_buffer("mean", mean)
        self.register_buffer("scale", torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, 0))
        hidden = width * num_features
        self.g = nn.Sequential(nn.Linear(num_features, hidden), nn.SiLU(), nn.Linear(hidden, num_classes))
        self.tau = (
            nn.Sequential(nn.Linear(num_features, num_features), nn.SiLU(), nn.Linear(num_features, num_features))
            if embedding
            else None
        )

    @property
    def num_features(self) -> int:
        return self.mean.shape[1]

    @property
    def num_classes(self) -> int:
        return self.g[-1].out_features  # type: ignore[return-value]

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest log sigma that it was trained on."""
        return float(self.levels[0]), float(self.levels[-1])

    def forward(self, features: Tensor, log_sigma: Tensor) -> Tensor:
        """Features [N, d] at log_sigma [N] -> logits [N, K]. Levels beyond `range` are taken for its nearest end."""
        log_sigma = log_sigma.to(self.levels).clamp(self.levels[0], self.levels[-1])
        x = (features - self._at(self.mean, log_sigma)) * self._at(self.scale, log_sigma)
        if self.tau is not None:
            x = x + self.tau(sinusoids(log_sigma, self.num_features))
        return self.g(x)

    def _at(self, values: Tensor, log_sigma: Tensor) -> Tensor:
        """Rows of [L, d] at log_sigma [N], linear between the levels."""
        if len(values) == 1:
            return values
        above = torch.searchsorted(self.levels, log_sigma).clamp(1, len(self.levels) - 1)
        low, high = self.levels[above - 1], self.levels[above]
        share = ((log_sigma - low) / (high - low)).unsqueeze(1)
        return torch.lerp(values[above - 1], values[above], share)


def head_size(num_features: int, num_classes: int, width: int, embedding: bool) -> int:
    """How many weights a NoisyHead has."""
    hidden, told = width * num_features, 2 * num_features if embedding else 0
    return (num_features + 1) * (hidden + told) + (hidden + 1) * num_classes


def sinusoids(log_sigma: Tensor, width: int) -> Tensor:
    """[N] -> [N, width]: sines and cosines; a last odd number is 0."""
    low, high = map(math.log, FREQUENCIES)
    frequencies = torch.linspace(low, high, width // 2, device=log_sigma.device).exp()
    angles = log_sigma.unsqueeze(1) * frequencies
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width % 2))


@dataclass(frozen=True)
class NoisyClassifier:
    """A head, the block that it reads, and the network that the block is of."""

    head: NoisyHead
    block: str
    pooling: int
    """k of the k x k average of the block's map."""
    class_names: tuple[str, ...]
    backbone: str
    """The network's name, as load_backbone takes it."""
    settings: Settings
    fingerprint: str
    """Backbone.fingerprint"""
    dataset: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What is known of it, such as its val accuracy."""

    @property
    def log_sigma_range(self) -> tuple[float, float]:
        """What it was trained on."""
        return self.head.range

    def logits(self, activation: Tensor, log_sigma: Tensor) -> Tensor:
        """The block's map [N, C, H, W] or tokens [N, S * S, C], at log_sigma [N] -> [N, K], float32; differentiable in
        the activation. Raises ValueError for an activation of another block."""
        map = token_grid(activation) if activation.ndim == 3 else activation
        features = pool(map.float(), self.pooling).flatten(1)
        if features.shape[1] != self.head.num_features:
            raise ValueError(
                f"an activation of shape {list(activation.shape)} gives {features.shape[1]} features, and the head of "
                f"block={self.block!r} reads {self.head.num_features}; give that of its own block"
            )
        return self.head(features, log_sigma)

    def open(self) -> Backbone:
        """Load the network, on the device of the settings. Raises ValueError where it is gone, or has changed."""
        backbone = load_backbone(self.backbone, self.settings)
        self.check(backbone)
        return backbone

    def check(self, backbone: Backbone) -> None:
        """Raises ValueError for another network than the one it was trained on."""
        if backbone.fingerprint != self.fingerprint:
            raise ValueError(
                f"the classifier was trained on {self.backbone}, whose fingerprint was {self.fingerprint[:12]}, and "
                f"this network's is {backbone.fingerprint[:12]}; give that network, or train a classifier on this one"
            )
        backbone.block(self.block)

    def save(self, folder: str | Path) -> None:
        """noisy_classifier.json and noisy_head.safetensors, for load(); the network is referred to."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        copies = {name: file for name, file in FILES.items() if getattr(self.settings, name)}
        for name, file in copies.items():
            copy_file(Path(getattr(self.settings, name)), folder / file)
        kept = asdict(self.settings) | copies
        del kept["device"], kept["compile"]
        is_path = self.backbone not in SHIPPED and Path(self.backbone).exists()
        save_file({name: each.cpu().contiguous() for name, each in self.head.state_dict().items()}, folder / HEAD)
        record = {
            "version": VERSION,
            "backbone": str(Path(self.backbone).absolute()) if is_path else self.backbone,
            "settings": kept,
            "fingerprint": self.fingerprint,
            "block": self.block,
            "pooling": self.pooling,
            "width": self.head.width,
            "embedding": self.head.embedding,
            "head_sha256": sha256(folder / HEAD),
            "class_names": self.class_names,
            "dataset": self.dataset,
            "log_sigma_range": self.log_sigma_range,
            "measured": dict(self.measured),
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1))

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "NoisyClassifier":
        """What save() wrote, with its head on the device. Raises ValueError for a folder that holds none, or a damaged
        one."""
        folder = Path(folder).absolute()
        if not (folder / RECORD).exists():
            raise ValueError(f"{folder} holds no {RECORD}; give a folder that sweeps/noisy_classifier.py has made")
        try:
            record, tensors = read_head(folder / RECORD, folder / HEAD, VERSION)
            kept = with_files(record["settings"], folder)
            names = tuple(record["class_names"])
            head = restored(tensors, len(names), record["width"], record["embedding"]).to(device)
            fields = "block", "pooling", "backbone", "fingerprint", "dataset", "measured"
            rest = {name: record[name] for name in fields}
            if not (isinstance(rest["pooling"], int) and all(isinstance(rest[name], str) for name in fields[2:5])):
                raise ValueError(f"{RECORD} has values of other types")
            return cls(head=head, class_names=names, settings=Settings(device=device, **kept), **rest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{folder} is damaged ({why}); run sweeps/noisy_classifier.py again") from error


def restored(tensors: Mapping[str, Tensor], num_classes: int, width: int, embedding: bool) -> NoisyHead:
    """A frozen head of these tensors."""
    levels, mean = tensors["levels"], tensors["mean"]
    head = NoisyHead(levels, mean, torch.ones_like(mean), num_classes, width, embedding)
    head.load_state_dict(dict(tensors))
    return head.eval().requires_grad_(False)
