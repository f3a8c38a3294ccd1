"""A tiny random pipeline for every image denoiser class of diffusers, laid out as the published one.

FOLDERS[id](folder) writes one with `save_pretrained`; the first word of an id is the pipeline's class. Sides are
small: by the folder's own configuration, or by arguments(id) where the pipeline's default is a constant.
"""

import json
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.ddae.backbones.every_class_cross import CROSS
from tests.ddae.backbones.every_class_joint import JOINT
from tests.ddae.backbones.every_class_others import OTHERS
from tests.ddae.backbones.every_class_parts import make
from tests.ddae.backbones.every_class_recent import RECENT
from tests.ddae.backbones.every_class_unets import UNETS
from tests.ddae.backbones.every_class_vision import VISION

PIPELINES = UNETS | CROSS | JOINT | RECENT | VISION | OTHERS

NOT_BUILT: dict[str, str] = {
    "AudioLDM2UNet2DConditionModel": "makes sound",
    "DreamLiteTransformer2DModel": "a part of DreamLiteUNetModel",
    "Flux3Transformer2DModel": "only modular pipelines have it, and their folders name no pipeline class",
    "I2VGenXLUNet": "makes video",
    "StableCascadeDecoderPipeline": "diffusers 0.42 does not load its VQGAN, which moved from where model_index.json "
    "says it is; its denoiser's class is that of StableCascadePriorPipeline",
    "Transformer2DModel": "a part of U-Nets, and the old name of two classes (the folders 'as published')",
}
"""Class of a denoiser or pipeline -> why no tiny folder of it is here."""


def write(name: str, folder: Path) -> None:
    import diffusers

    tiny = PIPELINES[name]
    parts = {part: make(component, seed) for seed, (part, component) in enumerate(tiny.components.items())}
    getattr(diffusers, name.split()[0])(**parts, **values(tiny.options)).save_pretrained(folder)
    for part, kind in tiny.published_as.items():
        rewrite(folder / "model_index.json", part, ["diffusers", kind])
        rewrite(folder / part / "config.json", "_class_name", kind)


def rewrite(path: Path, key: str, value: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def values(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value() if callable(value) else value for key, value in given.items()}


def arguments(name: str) -> dict[str, Any]:
    """What the pipeline's call must be given beside a prompt; None takes an argument away."""
    return values(PIPELINES[name].call)


def loading(name: str) -> dict[str, Any]:
    """What `from_pretrained` must be given, where diffusers cannot load a part from a folder."""
    return values(PIPELINES[name].load)


FOLDERS: dict[str, Callable[[Path], None]] = {name: partial(write, name) for name in PIPELINES}

ALWAYS = {
    "DDPMPipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline EDM", "PixArtSigmaPipeline", "SanaPipeline",
    "StableDiffusionInstructPix2PixPipeline", "LDMPipeline", "FluxPipeline", "StableDiffusion3Pipeline",
    "QwenImagePipeline", "PRXPixelPipeline", "ConsistencyModelPipeline",
}  # fmt: skip
"""One of each kind, which run without -m slow: pixels and latents, noise, velocity, EDM's and flows, UNets, and
transformers with text beside the image and in one sequence with it."""


SOMETIMES = {"DDPMPipeline", "StableDiffusionPipeline", "FluxPipeline"}
"""Of what is the same code for every class."""


def classes(but: Container[str] = (), always: Container[str] = ALWAYS) -> list[Any]:
    """Every id for a test's parameters; those that are not in `always` are slow."""
    return [pytest.param(name, marks=() if name in always else pytest.mark.slow) for name in FOLDERS if name not in but]
