"""Vision encoders of transformers: transformers:owner/model[@revision] or transformers:folder."""

import inspect
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddae.backbones.base import Backbone, Settings
from ddae.backbones.classifiers import RANDOM, Classifier, Standardised, build, make_backbone
from ddae.backbones.files import hub_snapshot, load_pretrained

COMPARED = (
    "beit", "clip_vision_model", "convnext", "convnextv2", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit",
    "resnet", "siglip_vision_model", "vit", "vit_mae",
)  # fmt: skip
"""Model types whose blocks the tests compare with transformers' own hidden_states."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels."""

FEATURES = re.compile(r".*stages\.\d+\.layers\.\d+|pre_layrnorm")
"""Paths of the blocks inside stages, and of what CLIP calls its first hidden state."""

UNRELATED = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "torch_dtype", "transformers_version")
"""Options of a configuration that no feature depends on."""


def load(model: str, settings: Settings) -> Backbone:
    """Loads DINOv2, MAE, ViT, ResNet, ConvNeXt, the vision towers of CLIP and SigLIP and others, by a hub id or from a
    folder that transformers has saved; `@random` draws the weights for its configuration. HF_HOME keeps what is
    downloaded.

    Blocks are the layers of the encoder, whose outputs transformers calls hidden_states, and what comes before them.
    """
    name, random = model.removesuffix(f"@{RANDOM}"), model.endswith(f"@{RANDOM}")
    folder, network = build(f"transformers:{name}", lambda: find_encoder(name, random), "HF_HOME")
    config, kind = network.config, type(network).__name__
    if network.main_input_name != "pixel_values" or config.model_type == "hiera":
        raise ValueError(
            f"backbone='transformers:{model}' is a {kind}, which takes no images or reorders patches; give a "
            f"vision encoder: {', '.join(COMPARED)}"
        )
    if config.model_type not in COMPARED:
        logging.getLogger("ddae").warning(
            "transformers:%s is a %s, whose blocks were never compared with its hidden_states; taking its patches as "
            "they come, row by row",
            model,
            kind,
        )
    size, mean, std = read_preparation(folder, config)
    size = settings.image_size or size
    patch_size = getattr(config, "patch_size", 1)
    if isinstance(patch_size, int) and size % patch_size:
        raise ValueError(f"image_size={size} does not suit transformers:{model}; it takes multiples of {patch_size}")
    options = {key: value for key, value in config.to_diff_dict().items() if key not in UNRELATED}
    architecture = f"{kind} {json.dumps(options, sort_keys=True, default=str)}"
    named = tuple(path for path, _ in network.named_modules() if FEATURES.fullmatch(path))
    num_prefix_tokens = 1 + getattr(config, "num_register_tokens", 0)
    encoder, arguments = Standardised(size, mean, std), arguments_of(network, size)
    found = Classifier(f"transformers:{model}", network, architecture, encoder, arguments, named, num_prefix_tokens)
    return make_backbone(found, settings)


def find_encoder(name: str, random: bool) -> tuple[Path, Any]:
    """The folder of a model, and its network; of a model that sees and reads, the vision tower alone."""
    from transformers import AutoConfig, AutoModel

    folder = Path(name)
    if not folder.is_dir():
        folder = hub_snapshot(name, lambda folder: [] if random else [("", "*model")])
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0
    if random:
        return folder, AutoModel.from_config(config, trust_remote_code=False).float().eval()
    return folder, load_pretrained(AutoModel, folder, optional="pooler", config=config, trust_remote_code=False)


def arguments_of(network: Any, size: int) -> Callable[[Tensor], dict[str, Any]]:
    """Makes the arguments of an encoder from images of this size. A MAE sorts patches by `noise`, which ascends here,
    so that they stay in image order; none is masked, as its mask_ratio is 0."""
    config, parameters = network.config, inspect.signature(network.forward).parameters
    resized = "interpolate_pos_encoding" in parameters and size != config.image_size

    def arguments(x: Tensor) -> dict[str, Any]:
        given: dict[str, Any] = {"pixel_values": x}
        if config.model_type == "vit_mae":
            num_patches = (size // config.patch_size) ** 2
            given["noise"] = torch.arange(num_patches, device=x.device).expand(len(x), -1)
        return {**given, "interpolate_pos_encoding": True} if resized else given

    return arguments


def read_preparation(folder: Path, config: Any) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side, mean and standard deviation of the images that an encoder was trained with, from its image processor's
    configuration; ImageNet's, with a warning, if it has none.

    Raises ValueError for a preparation that is more than resizing and standardising.
    """
    from transformers import AutoImageProcessor

    if not any((folder / f"{name}_config.json").exists() for name in ("preprocessor", "processor")):
        size = config.image_size if isinstance(getattr(config, "image_size", None), int) else 224
        logging.getLogger("ddae").warning(
            "%s has no preprocessor_config.json; taking images of side %d with ImageNet's mean and standard deviation",
            folder,
            size,
        )
        return size, *IMAGENET
    processor = AutoImageProcessor.from_pretrained(folder)
    sides = dict(processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size)
    side = sides.get("height", sides.get("shortest_edge"))
    if side is None or sides.get("width", side) != side:
        raise ValueError(f"{folder} prepares images of {sides}; square ones are needed, of one height and width")
    if not processor.do_rescale or abs(processor.rescale_factor * 255 - 1) > 1e-3:
        raise ValueError(
            f"{folder} prepares images with do_rescale={processor.do_rescale} and rescale_factor="
            f"{processor.rescale_factor}; only pixels in [0, 1] are supported, do_rescale=True and 1/255"
        )
    if not processor.do_normalize:
        return side, (0.0,) * 3, (1.0,) * 3
    return side, tuple(processor.image_mean), tuple(processor.image_std)
