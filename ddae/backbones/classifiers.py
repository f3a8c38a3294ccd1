"""What the libraries of networks trained on clean images share, which are compared with diffusion
networks and have one timestep, 0, without noise.

Images are resized to the side that the network was trained at, and the whole image stays in view: the margin that the
libraries cut off for their published accuracies is kept, so that all networks see the same part of an image.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddae.backbones.base import Backbone, Encoder, Pixels, Settings
from ddae.backbones.files import first_line
from ddae.backbones.module_search import find_blocks, to_map
from ddae.nearest import did_you_mean
from ddae.noise import Clean

RANDOM = "random"
"""Given instead of weights, it means those that the library's initialisation draws from seed 0."""


@dataclass(frozen=True)
class Classifier:
    """A network as its library gives it."""

    name: str
    """As the user gave it: library:model."""
    network: Any
    architecture: str
    """What decides its features besides weights and images: the library's name of the model, or its configuration."""
    encoder: Encoder
    arguments: Callable[[Tensor], dict[str, Any]] | None = None
    """Makes the arguments of its forward pass from prepared images; without it they are the only argument."""
    named: tuple[str, ...] = ()
    """Paths of the modules that the library names as features, which are blocks besides those that are found."""
    num_prefix_tokens: int = 0
    """Class and register tokens that stand before the patches, as far as the library says."""
    read_at: Mapping[str, str] = field(default_factory=dict)
    """Paths of blocks that hold tokens in another order than the image's, with the modules that put them in order."""


@dataclass(frozen=True)
class Standardised:
    """Pixels standardised as in training; a network of a single channel gets the mean of the three colours."""

    image_size: int
    mean: tuple[float, ...]
    """The mean of each channel of the training images in [0, 1]."""
    std: tuple[float, ...]
    """The standard deviation of each channel."""
    fingerprint: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.mean), self.image_size, self.image_size

    def __call__(self, images: Tensor) -> Tensor:
        pixels = (Pixels(self.image_size, len(self.mean))(images) + 1) / 2
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


def make_backbone(found: Classifier, settings: Settings) -> Backbone:
    """Finds the blocks of a classifier and fingerprints it.

    Raises ValueError if it has no blocks, or does not take images of this size or number of channels.
    """
    network, encoder, channels = found.network.eval(), found.encoder, found.encoder.shape[0]
    if channels not in (1, 3) and not encoder.fingerprint:
        raise ValueError(f"backbone={found.name!r} takes images of {channels} channels; 1 and 3 are supported")
    for module in network.modules():  # an output that is kept must not change afterwards
        if hasattr(module, "inplace"):
            module.inplace = False
    argument = next(iter(inspect.signature(network.forward).parameters))
    arguments = found.arguments or (lambda x: {argument: x})
    try:
        specs = find_blocks(network, arguments(torch.zeros(1, *encoder.shape, device="meta")), found.named)
    except Exception as error:  # of any class: the network was never seen here
        raise ValueError(
            f"backbone={found.name!r} does not run on images of side {encoder.image_size} ({first_line(error)}); "
            "--image-size gives another, where the network is not bound to its own"
        ) from error
    if not specs:
        raise ValueError(
            f"backbone={found.name!r} has no blocks to read features from: none of its modules returns a square map or "
            "one token for each patch; give another network"
        )
    specs = tuple(replace(spec, module=found.read_at.get(spec.module, spec.module)) for spec in specs)
    inputs, as_map = lambda x, timestep: arguments(x), partial(to_map, num_prefix_tokens=found.num_prefix_tokens)
    return Backbone(network, specs, Clean(), encoder, inputs, fingerprint(found, settings), settings, as_map)


def fingerprint(found: Classifier, settings: Settings) -> str:
    """sha256 over architecture, preparation of images, settings, and the names and values of all weights."""
    library = found.name.partition(":")[0]
    encoder = found.encoder.fingerprint or found.encoder
    digest = hashlib.sha256(repr((library, found.architecture, encoder)).encode() + settings.stamp)
    for name, tensor in found.network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def check_known(library: str, name: str, known: Iterable[str]) -> None:
    """Raises ValueError for a model that the library does not have, with the nearest name that it has."""
    known = list(known)
    if name not in known:
        raise ValueError(f"backbone='{library}:{name}' is none of {library}'s {len(known)}{did_you_mean(name, known)}")


def build(name: str, make: Callable[[], Any], home: str) -> Any:
    """Builds a network; random weights are the same every time. Raises ValueError if the weights cannot be had."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return make()
        except Exception as error:  # of files, the network and the hub
            raise ValueError(
                f"backbone={name!r}: its weights cannot be had ({type(error).__name__}: {first_line(error)}); fetch "
                f"them where there is a network ({home} keeps them), or give {name}@{RANDOM} for random ones"
            ) from error
