"""Classifiers of torchvision: torchvision:name[@weights], or with weights from a file, torchvision:name@FILE."""

import os
from pathlib import Path

from torch import Tensor, nn

from ddae.backbones.base import Backbone, Settings
from ddae.backbones.checkpoints import containers
from ddae.backbones.classifiers import RANDOM, Classifier, Standardised, build, check_known, make_backbone
from ddae.backbones.pickles import READERS, read_torch


def load(model: str, settings: Settings) -> Backbone:
    """Loads a network by torchvision's names of models and of their weights, with the best weights if none are named.
    TORCH_HOME keeps what is downloaded."""
    from torchvision import models

    name, _, weights_name = model.partition("@")
    check_known("torchvision", name, models.list_models(module=models))
    choices, file = models.get_model_weights(name), ""
    if Path(weights_name).is_file():
        file, weights_name = weights_name, RANDOM
    if weights_name not in ("", RANDOM, *choices.__members__):
        allowed = ", ".join([*choices.__members__, RANDOM])
        raise ValueError(f"torchvision:{name} has no weights {weights_name!r}; allowed: {allowed}, or a file of them")
    weights = choices[weights_name or "DEFAULT"] if weights_name != RANDOM else None
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # torchvision would run what a file in TORCH_HOME says
    network = build(
        f"torchvision:{name}", lambda: models.get_model(name, weights=weights, progress=False), "TORCH_HOME"
    )
    if file:
        take_weights(network, Path(file))
    preset = (weights or choices["DEFAULT"]).transforms()
    size = getattr(network, "image_size", preset.crop_size[0])  # the largest ViT has another without weights
    encoder = Standardised(settings.image_size or size, tuple(preset.mean), tuple(preset.std))
    return make_backbone(Classifier(f"torchvision:{model}", network, name, encoder), settings)


def take_weights(network: nn.Module, file: Path) -> None:
    """Gives a network the tensors of a file that self-supervised training has left: SwAV's and other official ones,
    VISSL's and plain state dicts, under whatever prefix and in whatever dictionary they lie. Projection heads and
    prototypes are left out; the network's own classifier keeps its random weights.

    Raises ValueError where a tensor of the network, its classifier apart, is in none of the file's dictionaries.
    """
    own = network.state_dict()
    last = list(own)[-1].rpartition(".")[0]
    wanted = {name for name in own if not name.startswith(f"{last}.") and not name.endswith("num_batches_tracked")}
    first = next(iter(own))
    for _, named in containers(READERS.get(file.suffix, read_torch)(file)):
        named = {str(name): each for name, each in named.items()} if isinstance(named, dict) else {}
        for prefix in [name.removesuffix(first) for name in named if name.endswith(first)]:
            found = {name: named[prefix + name] for name in wanted if isinstance(named.get(prefix + name), Tensor)}
            if len(found) == len(wanted) and all(each.shape == own[name].shape for name, each in found.items()):
                network.load_state_dict({**own, **{name: each.float() for name, each in found.items()}})
                return
    raise ValueError(f"{file} has no tensors of this network, such as {first}, under any prefix; give another file")
