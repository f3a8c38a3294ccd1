"""Wide residual networks (Zagoruyko & Komodakis 2016), untrained, for baselines: wrn:depth-width, as wrn:28-10, on
pixels, or wrn:depth-width@vae on the latents of an autoencoder."""

from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

from ddae.backbones.base import Backbone, Pixels, Settings
from ddae.backbones.classifiers import RANDOM, Classifier, build, make_backbone
from ddae.backbones.vae import Latents, load_vae


def load(model: str, settings: Settings) -> Backbone:
    """Raises ValueError for sizes that there is no such network of. What stands behind the @ is a VAE's folder or hub
    id, or the folder of a model that has one; random means none, because the weights always are."""
    sizes, _, vae = model.partition("@")
    depth, _, width = sizes.partition("-")
    if not (depth.isdigit() and width.isdigit() and int(depth) >= 10 and (int(depth) - 4) % 6 == 0 and int(width)):
        raise ValueError(f"wrn:{sizes} must be depth-width with a depth of 10, 16, 22, 28, ..., as in wrn:28-10")
    encoder: Pixels | Latents = Pixels(settings.image_size or 32)
    if vae not in ("", RANDOM):
        inside = Path(vae) / "vae"
        autoencoder = load_vae(str(inside if inside.is_dir() else vae), settings)
        encoder = Latents(autoencoder, settings.image_size or autoencoder.config.sample_size)
    network = build(f"wrn:{sizes}", lambda: WideResNet(int(depth), int(width), encoder.shape[0]), "")
    named = "groups.0", "groups.1", "groups.2", "last"
    return make_backbone(Classifier(f"wrn:{model}", network, f"wrn-{sizes}", encoder, None, named), settings)


class WideResNet(nn.Module):
    """Three groups of pre-activation blocks, of 16, 32 and 64 times `width` channels, each at half the size of the one
    before. x: [N, C, H, W] -> the last map, [N, 64 * width, H / 4, W / 4]."""

    def __init__(self, depth: int, width: int, in_channels: int):
        super().__init__()
        self.stem = convolution(in_channels, 16)
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.groups = nn.Sequential()
        for index, (before, after) in enumerate(pairwise(widths)):
            blocks = [PreActivation(after, after) for _ in range((depth - 4) // 6 - 1)]
            self.groups.append(nn.Sequential(PreActivation(before, after, 2 if index else 1), *blocks))
        self.last = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.groups(self.stem(x)))


class PreActivation(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int = 1):
        super().__init__()
        self.activated = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.convolved = nn.Sequential(
            convolution(before, after, stride), nn.BatchNorm2d(after), nn.ReLU(), convolution(after, after)
        )
        changed = before != after or stride > 1
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activated(x)
        return self.convolved(activated) + (self.shortcut(activated) if self.shortcut is not None else x)


def convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
