"""Networks that classify, of torchvision and timm, to compare diffusion networks with: one timestep, 0, without noise.

Images come resized to the side that the network was trained at, with the whole of them in view: the margin that the
libraries cut off for their published accuracies stays, so that all networks see the same part of an image.
"""

import hashlib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddae.backbones.base import Backbone, Pixels, Place, Settings, first_map, token_grid
from ddae.backbones.files import first_line
from ddae.nearest import did_you_mean
from ddae.noise import Clean

RANDOM = "random"
"""In the place of weights: none, but what the library's initialisation draws from seed 0."""


class Classifier(NamedTuple):
    network: Any
    architecture: str
    """By the library's name, which tells what the weights do not."""
    image_size: int
    mean: tuple[float, ...]
    """Of each channel of its training images in [0, 1], as std."""
    std: tuple[float, ...]


@dataclass(frozen=True)
class Standardised:
    """As the network was trained; one of a single channel gets the mean of the three colours."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.mean), self.image_size, self.image_size

    def __call__(self, images: Tensor) -> Tensor:
        pixels = (Pixels(self.image_size, len(self.mean))(images) + 1) / 2
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


def is_name(name: str) -> bool:
    """Whether it is one of a classifier: torchvision:name[@weights] or timm:name."""
    return name.partition(":")[0] in LIBRARIES


def load(name: str, settings: Settings) -> Backbone:
    """torchvision:name[@weights], timm:name[.weights], timm:folder or timm:owner/model[@revision]; `@random` for
    random weights.

    Weights come from where the library keeps or fetches them: TORCH_HOME, HF_HOME.
    """
    library, _, model = name.partition(":")
    network, architecture, image_size, mean, std = LIBRARIES[library](model, settings.image_size)
    encoder = Standardised(settings.image_size or image_size, mean, std)
    if len(mean) not in (1, 3):
        raise ValueError(f"backbone={name!r} takes images of {len(mean)} channels; 1 and 3 are supported")
    for module in network.modules():  # what is kept of a block must not change behind it
        if hasattr(module, "inplace"):
            module.inplace = False
    digest = hashlib.sha256(repr((library, architecture, encoder)).encode() + settings.stamp)
    for key, tensor in network.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    argument = next(iter(inspect.signature(network.forward).parameters))
    try:
        places = find_places(network, argument, encoder.shape)
    except Exception as error:  # of any class: the network was never seen here
        raise ValueError(
            f"backbone={name!r} does not run on images of side {encoder.image_size} ({first_line(error)}); "
            "--image-size gives another, where the network is not bound to its own"
        ) from error
    return Backbone(
        network,
        places,
        Clean(),
        encoder,
        lambda x, timestep: {argument: x},
        digest.hexdigest(),
        settings,
        to_map,
    )


def from_torchvision(model: str, image_size: int) -> Classifier:
    """By the library's own names of models and of their weights; the best of these where none are named."""
    from torchvision import models

    name, _, weights_name = model.partition("@")
    check_known("torchvision", name, models.list_models(module=models))
    choices = models.get_model_weights(name)
    if weights_name not in ("", RANDOM, *choices.__members__):
        allowed = ", ".join([*choices.__members__, RANDOM])
        raise ValueError(f"torchvision:{name} has no weights {weights_name!r}; allowed: {allowed}")
    weights = choices[weights_name or "DEFAULT"] if weights_name != RANDOM else None
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # torchvision would run what a file in TORCH_HOME says
    network = build(
        f"torchvision:{name}", lambda: models.get_model(name, weights=weights, progress=False), "TORCH_HOME"
    )
    preset = (weights or choices["DEFAULT"]).transforms()
    side = getattr(network, "image_size", preset.crop_size[0])  # of the largest ViT only without its weights
    return Classifier(network, name, side, tuple(preset.mean), tuple(preset.std))


def from_timm(model: str, image_size: int) -> Classifier:
    """By the library's own names, a folder that timm has saved, or a hub id."""
    import timm
    from timm.data import resolve_model_data_config

    name, _, weights_name = model.partition("@")
    source = ""
    if Path(name).is_dir():
        source = "local-dir:"
    elif "/" in name:
        source = "hf-hub:"
        name = model if weights_name != RANDOM else name
    else:
        check_known("timm", name.partition(".")[0], timm.list_models())
        if weights_name not in ("", RANDOM):
            raise ValueError(f"timm:{model}: timm names weights behind a dot, as in resnet18.a1_in1k")
    fixed = image_size and not source and timm.get_pretrained_cfg_value(name, "fixed_input_size")
    pretrained, size = weights_name != RANDOM, image_size if fixed else None
    network = build(
        f"timm:{name}", lambda: timm.create_model(source + name, pretrained=pretrained, img_size=size), "HF_HOME"
    )
    config, architecture = resolve_model_data_config(network), network.pretrained_cfg["architecture"]
    return Classifier(network, architecture, config["input_size"][-1], tuple(config["mean"]), tuple(config["std"]))


LIBRARIES: dict[str, Callable[[str, int], Classifier]] = {"torchvision": from_torchvision, "timm": from_timm}
"""(model, side of images where it is not the network's own) -> Classifier."""


def check_known(library: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise ValueError(f"backbone='{library}:{name}' is none of {library}'s {len(known)}{did_you_mean(name, known)}")


def build(name: str, make: Callable[[], nn.Module], home: str) -> Any:
    """With random weights always the same. Raises ValueError where the weights cannot be had."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return make().eval()
        except Exception as error:  # of files, the network and the hub
            raise ValueError(
                f"backbone={name!r}: its weights cannot be had ({type(error).__name__}: {first_line(error)}); fetch "
                f"them where there is a network ({home} keeps them), or give {name}@{RANDOM} for random ones"
            ) from error


def find_places(network: nn.Module, argument: str, shape: tuple[int, ...]) -> tuple[Place, ...]:
    """The blocks that give maps or tokens, in the order in which they do; by a pass of one image on the meta device."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    state = {name: tensor.to("meta") for name, tensor in state.items()}
    found: dict[str, None] = {}

    def hook_of(path: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if is_map(output):
                found[path] = None

        return hook

    hooks = [network.get_submodule(path).register_forward_hook(hook_of(path)) for path in block_paths(network)]
    with torch.no_grad():
        functional_call(network, state, (), {argument: torch.zeros(1, *shape, device="meta")})
    for handle in hooks:
        handle.remove()
    return tuple(Place(path, index, path) for index, path in enumerate(found))


LISTS = nn.Sequential, nn.ModuleList


def block_paths(module: nn.Module, path: str = "") -> Iterator[str]:
    """The outermost modules of modules, inside the lists of these; of a flat list of convolutions, as VGG's, the last
    before the next convolution."""
    for name, child in module.named_children():
        inside, items = f"{path}{name}", list(child.named_children())
        starts = [i for i, (_, item) in enumerate(items) if isinstance(item, nn.Conv2d)]
        if is_stage(child):
            yield from block_paths(child, f"{inside}.")
        elif isinstance(child, LISTS) and len(starts) > 1:
            yield from (f"{inside}.{items[end - 1][0]}" for end in [*starts[1:], len(items)])
        elif items:
            yield inside


def is_stage(module: nn.Module) -> bool:
    """A list of blocks, or what has one beside other modules."""
    if isinstance(module, LISTS):
        return depth(module) > 1
    lists = [child for child in module.children() if isinstance(child, LISTS) and depth(child) > 2]
    return any(len({type(item) for item in items}) == 1 for items in lists)


def depth(module: nn.Module) -> int:
    """0 of a module without others in it."""
    return max((1 + depth(child) for child in module.children()), default=0)


def is_map(output: Any) -> bool:
    if not isinstance(output, Tensor):
        return False
    return output.ndim == 3 or (output.ndim == 4 and (output.shape[2] == output.shape[3] or is_channels_last(output)))


def is_channels_last(output: Tensor) -> bool:
    return output.shape[1] == output.shape[2] != output.shape[3]


def to_map(output: Any) -> Tensor:
    """What a block returns -> [N, C, S, S]. Class and register tokens, which stand first, are left out."""
    map = first_map(output)
    if map.ndim == 3:
        num_tokens = map.shape[1]
        return token_grid(map[:, num_tokens - math.isqrt(num_tokens) ** 2 :])
    return map.permute(0, 3, 1, 2) if is_channels_last(map) else map
