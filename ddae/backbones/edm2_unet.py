"""NVlabs' EDM2 UNet (Karras et al. 2024, configuration G), whose layers keep the magnitude of what they get."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Layout:
    """The shape of an EDM2 UNet, and the balances that no tensor shows, with their official values."""

    size: int
    in_channels: int
    widths: tuple[int, ...]
    noise_channels: int
    embedding_channels: int
    num_labels: int
    num_blocks: int
    attention: tuple[int, ...]
    """Sides of the maps that have attention."""
    res_balance: float = 0.3
    attn_balance: float = 0.3
    label_balance: float = 0.5
    concat_balance: float = 0.5
    clip_act: float = 256.0
    channels_per_head: int = 64


class EDM2UNet(nn.Module):
    """Takes c_in x [N, C, S, S] and c_noise [N]; every image gets no label, which is officially a vector of zeros."""

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout = layout
        widths, embedding = layout.widths, layout.embedding_channels
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = Fourier(layout.noise_channels)
        self.emb_noise = Weights(layout.noise_channels, embedding)
        self.emb_label = Weights(layout.num_labels, embedding) if layout.num_labels else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        now, skips, last = widths[0], [widths[0]], len(widths) - 1
        self.enc[f"{layout.size}x{layout.size}_conv"] = Weights(layout.in_channels + 1, now, 3)
        for level, width in enumerate(widths):
            side = layout.size >> level
            if level:
                self.enc[f"{side}x{side}_down"] = Residual(layout, now, now, "enc", resample="down")
                skips.append(now)
            for j in range(layout.num_blocks):
                self.enc[f"{side}x{side}_block{j}"] = Residual(layout, now, width, "enc", side in layout.attention)
                now = width
                skips.append(now)
        for level in reversed(range(len(widths))):
            side, width = layout.size >> level, widths[level]
            if level == last:
                self.dec[f"{side}x{side}_in0"] = Residual(layout, now, now, "dec", True)
                self.dec[f"{side}x{side}_in1"] = Residual(layout, now, now, "dec")
            else:
                self.dec[f"{side}x{side}_up"] = Residual(layout, now, now, "dec", resample="up")
            for j in range(layout.num_blocks + 1):
                old = now + skips.pop()
                self.dec[f"{side}x{side}_block{j}"] = Residual(layout, old, width, "dec", side in layout.attention)
                now = width
        self.out_conv = Weights(now, layout.in_channels, 3)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        embedding = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None:
            embedding = mix(embedding, torch.zeros_like(embedding), self.layout.label_balance)
        embedding = silu(embedding)
        x, skips = torch.cat([x, torch.ones_like(x[:, :1])], dim=1), []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("_conv") else block(x, embedding)
            skips.append(x)
        for name, block in self.dec.items():
            if "_block" in name:
                x = join(x, skips.pop(), self.layout.concat_balance)
            x = block(x, embedding)
        return self.out_conv(x, self.out_gain)


class Residual(nn.Module):
    """A residual block of the encoder or decoder, with or without attention (figure 21)."""

    def __init__(self, layout: Layout, old: int, new: int, side: str, attention: bool = False, resample: str = ""):
        super().__init__()
        self.layout, self.side, self.resample = layout, side, resample
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = Weights(new if side == "enc" else old, new, 3)
        self.emb_linear = Weights(layout.embedding_channels, new)
        self.conv_res1 = Weights(new, new, 3)
        self.conv_skip = Weights(old, new, 1) if old != new else None
        self.attn_qkv = Weights(new, 3 * new, 1) if attention else None
        self.attn_proj = Weights(new, new, 1) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.resample == "down":
            x = functional.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.side == "enc":
            x = normalized(self.conv_skip(x) if self.conv_skip is not None else x, [1])
        told = self.emb_linear(embedding, self.emb_gain) + 1
        y = self.conv_res1(silu(self.conv_res0(silu(x)) * told[:, :, None, None]))
        if self.side == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mix(x, y, self.layout.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            heads = x.shape[1] // self.layout.channels_per_head
            qkv = self.attn_qkv(x).flatten(2).unflatten(1, (heads, -1, 3))
            query, key, value = normalized(qkv, [2]).permute(3, 0, 1, 4, 2)
            mixed = functional.scaled_dot_product_attention(query, key, value).transpose(2, 3).reshape(x.shape)
            x = mix(x, self.attn_proj(mixed), self.layout.attn_balance)
        return x.clip(-self.layout.clip_act, self.layout.clip_act)


class Weights(nn.Module):
    """A convolution or linear layer without bias, whose weights are normalised where they are used (equation 47)."""

    def __init__(self, old: int, new: int, kernel: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(new, old, *[kernel] * 2 * (kernel > 0)))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        weight = normalized(self.weight, range(1, self.weight.ndim))
        weight = (weight * (gain / math.sqrt(self.weight[0].numel()))).to(x.dtype)
        return x @ weight.t() if weight.ndim == 2 else functional.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Fourier(nn.Module):
    """Random features of the noise level, of magnitude 1. [N] -> [N, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.freqs = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.phases = nn.Parameter(torch.zeros(channels), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x.outer(self.freqs) + self.phases).cos() * math.sqrt(2)


def normalized(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Scales x so that the mean square over these dimensions is 1 (equation 66)."""
    norm = torch.linalg.vector_norm(x, dim=list(dims), keepdim=True)
    return x / (1e-4 + norm * math.sqrt(norm.numel() / x.numel()))


def silu(x: Tensor) -> Tensor:
    return functional.silu(x) / 0.596


def mix(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The sum of a and this share of b that keeps their magnitude (equation 88)."""
    return a.lerp(b, share) / math.hypot(1 - share, share)


def join(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The concatenation that keeps the magnitude, and in which b has this share (equation 103)."""
    scale = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - share) ** 2 + share**2))
    return torch.cat(
        [scale / math.sqrt(a.shape[1]) * (1 - share) * a, scale / math.sqrt(b.shape[1]) * share * b], dim=1
    )
