"""Classifiers of torchvision: torchvision:name[@weights]."""

import os

from ddae.backbones.base import Backbone, Settings
from ddae.backbones.classifiers import RANDOM, Classifier, Standardised, build, check_known, make_backbone


def load(model: str, settings: Settings) -> Backbone:
    """Loads a network by torchvision's names of models and of their weights, with the best weights if none are named.
    TORCH_HOME keeps what is downloaded."""
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
    size = getattr(network, "image_size", preset.crop_size[0])  # the largest ViT has another without weights
    encoder = Standardised(settings.image_size or size, tuple(preset.mean), tuple(preset.std))
    return make_backbone(Classifier(f"torchvision:{model}", network, name, encoder), settings)
