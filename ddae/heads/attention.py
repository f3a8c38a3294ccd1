"""Transformer blocks over the pooled map (Mukhopadhyay et al. 2023, appendix A and Table 9)."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from ddae.heads.kept import Kept
from ddae.heads.training import Parts, Recipe, StackedNetworks, memory, train, untrained
from ddae.scaling import Standardise
from ddae.streaming import Features

RECIPE = Recipe(settings=((1e-3, 1.0), (3e-3, 0.1)), batch_size=128)


def fit_attention(
    features: Features, labels: Tensor, num_classes: int, seed: int, num_blocks: int, kept: Kept | None = None
) -> StackedNetworks:
    """Fit `num_blocks` Transformer blocks on features standardised channel by channel."""
    return train(*parts(features, num_classes, num_blocks), features, labels, seed, RECIPE, kept)


def parts(features: Features, num_classes: int, num_blocks: int) -> Parts:
    return Standardise(features, dims=(0, 2, 3)), lambda: Attention(features.shape[1], num_blocks, num_classes)


empty_attention = partial(untrained, parts)
attention_memory = partial(memory, parts, RECIPE)


class Attention(nn.Module):
    """[N, C, g, g] -> [N, K]: Transformer blocks on a CLS token and g * g tokens without positional encoding, then a
    linear layer on CLS."""

    def __init__(self, channels: int, num_blocks: int, num_classes: int):
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, channels) * 0.02)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(num_blocks))
        self.classify = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, num_classes))

    def forward(self, maps: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(maps), -1, -1), maps.flatten(2).transpose(1, 2)], 1)
        for block in self.blocks[:-1]:
            x = block(x, num_outputs=x.shape[1])
        return self.classify(self.blocks[-1](x, num_outputs=1)[:, 0])


class Block(nn.Module):
    """A pre-LN Transformer block whose MLP is 4 C wide. It returns the first num_outputs tokens, because the last block
    is only asked for CLS."""

    def __init__(self, channels: int):
        super().__init__()
        num_heads = math.gcd(channels, 8)
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor, num_outputs: int) -> Tensor:
        keys = self.norm(x)
        attended, _ = self.attention(keys[:, :num_outputs], keys, keys, need_weights=False)
        x = x[:, :num_outputs] + attended
        return x + self.mlp(x)
