"""A wide residual network for noised images (Denoising Diffusion Autoencoders, Xiang et al. 2023, section 4.1.3): group
normalisation, and an embedding of the noise level in every block; untrained, as a baseline."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ddae.backbones.wide_resnet import convolution
from ddae.noisy_classifier import sinusoids

GROUPS = 8
NUM_SINUSOIDS, NUM_EMBEDDED = 32, 128
SMALL = "wrn:10-1"
"""What wide-resnet stands for: 0.1M parameters, which a CPU trains."""


def sizes_of(name: str) -> tuple[int, int]:
    """Depth and width of wide-resnet, or of wrn:depth-width. Raises ValueError for another name."""
    kind, _, sizes = (SMALL if name == "wide-resnet" else name).partition(":")
    depth, _, width = sizes.partition("-")
    if kind != "wrn" or not (depth.isdigit() and width.isdigit() and int(width)):
        raise ValueError(f"baseline={name!r} is not known; give wide-resnet, or wrn:depth-width, as wrn:28-10")
    if int(depth) < 10 or (int(depth) - 4) % 6:
        raise ValueError(f"baseline={name!r} must have a depth of 10, 16, 22, 28, ..., as in wrn:28-10")
    return int(depth), int(width)


class NoisyWideResNet(nn.Module):
    """(x_t [N, C, H, W], log_sigma [N]) -> logits [N, K]. Each image is standardised by its own mean and deviation."""

    def __init__(self, depth: int, width: int, in_channels: int, num_classes: int):
        super().__init__()
        self.stem = convolution(in_channels, 16)
        self.embed = nn.Sequential(
            nn.Linear(NUM_SINUSOIDS, NUM_EMBEDDED), nn.SiLU(), nn.Linear(NUM_EMBEDDED, NUM_EMBEDDED), nn.SiLU()
        )
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.blocks = nn.ModuleList()
        for index, (before, after) in enumerate(pairwise(widths)):
            self.blocks.append(NoisyBlock(before, after, 2 if index else 1))
            self.blocks.extend(NoisyBlock(after, after) for _ in range((depth - 4) // 6 - 1))
        self.last = nn.Sequential(nn.GroupNorm(GROUPS, widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x_t: Tensor, log_sigma: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(x_t, (1, 2, 3), keepdim=True)
        x, embedded = self.stem((x_t - mean) / (deviation + 1e-6)), self.embed(sinusoids(log_sigma, NUM_SINUSOIDS))
        for block in self.blocks:
            x = block(x, embedded)
        return self.head(self.last(x))


class NoisyBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution where the shape changes; between them the embedding is
    added."""

    def __init__(self, before: int, after: int, stride: int = 1):
        super().__init__()
        self.activated = nn.Sequential(nn.GroupNorm(GROUPS, before), nn.ReLU())
        self.first, self.told = convolution(before, after, stride), nn.Linear(NUM_EMBEDDED, after)
        self.second = nn.Sequential(nn.GroupNorm(GROUPS, after), nn.ReLU(), convolution(after, after))
        changed = before != after or stride > 1
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if changed else None

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        activated = self.activated(x)
        added = self.first(activated) + self.told(embedded)[:, :, None, None]
        return self.second(added) + (self.shortcut(activated) if self.shortcut is not None else x)
