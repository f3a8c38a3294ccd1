"""What stands for a text where the folder of a pipeline has no text encoder: zeros in every shape that it takes."""

import inspect
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch

from ddae.backbones.files import read_json

TEXT_TOKENS = 7
"""How many tokens of zeros stand for a text, where the network does not say; no image has as many."""

WIDTHS = {
    "": (
        "caption_channels", "joint_attention_dim", "encoder_hid_dim", "text_embed_dim", "cap_feat_dim", "text_in_dim",
        "cross_attention_dim", "context_in_dim", "text_dim", "text_hidden_dim",
    ),
    "2": ("cross_attention_dim_t5", "text_embed_2_dim"),
    "qwen": ("in_text_dim",),
    "clip": ("in_text_dim2",),
    "pooled": ("pooled_projection_dim", "text_emb_dim"),
}  # fmt: skip
"""Options of networks that give the width of an embedding, by what its name ends with, or pooled; the first that is set
counts. An embedding without options of its own takes those of the first."""

NOT_NEEDED = ("safety_checker", "watermarker", "scheduler")
"""Parts of pipelines that are not loaded, or made without a folder."""

LENGTHS = {"": "text_len", "2": "text_len_t5"}
"""Options that give the number of tokens, where that is fixed."""


def has_text_encoder(pipeline: Any) -> bool:
    return any("text_encoder" in name and part is not None for name, part in pipeline.components.items())


def missing_parts(kind: Any, folder: Path) -> list[str]:
    """What a pipeline needs that is not in its folder: of the parts that its model_index.json names or, if all of them
    are there, of those that its constructor asks for and does not call optional, or else of all that it asks for."""
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
    named = [name for name, value in index.items() if isinstance(value, list) and value[:1] not in ([], [None])]
    asked = [
        part.name
        for part in list(inspect.signature(kind.__init__).parameters.values())[1:]
        if part.default is part.empty or "text_encoder" in part.name
    ]
    strictly = [name for name in asked if name not in kind._optional_components]
    for names in (named, strictly, asked):
        if missing := [name for name in names if name not in NOT_NEEDED and not (folder / name).is_dir()]:
            return missing
    return []


def zeros_for_text(pipeline: Any, network: Any) -> dict[str, Any]:
    """Zeros for every embedding that the pipeline takes, [1, tokens, width], or [1, width] for pooled ones, and masks
    that show all of them."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(pipeline).__call__).parameters.items():
        kind = name.rpartition("_")[2]
        num_tokens = network.config.get(LENGTHS.get(kind, LENGTHS[""])) or TEXT_TOKENS
        if "ip_adapter" in name or ("image" in name and parameter.default is not parameter.empty):
            continue
        if "embeds" in name and "mask" not in name:
            zeros = zeros_of(name, num_tokens, pipeline, network.config)
            given[name] = [zeros[0]] if is_list(parameter) else zeros
        elif "mask" in name and ("prompt" in name or "attention" in name):
            given[name] = torch.ones(1, num_tokens, dtype=torch.bool)
        elif kind == "seqlens":
            given[name] = torch.tensor([0, num_tokens], dtype=torch.int32)
    return given


def is_list(parameter: Parameter) -> bool:
    return str(parameter.annotation).startswith(("list", "typing.List"))


def zeros_of(name: str, num_tokens: int, pipeline: Any, config: Any) -> torch.Tensor:
    """Zeros for one embedding, by its name."""
    kind = name.rpartition("_")[2]
    is_pooled = "pooled" in name or "image" in name
    width = width_of("pooled" if is_pooled else kind, config) or width_of("", config)
    if is_pooled and config.get("addition_embed_type") == "text_time":
        num_ids = 5 if pipeline.config.get("requires_aesthetics_score") else 6
        width = config.projection_class_embeddings_input_dim - num_ids * config.addition_time_embed_dim
    if isinstance(width, list | tuple):  # of several text encoders
        width = width[-1 if kind == "llama3" else 0]
    if is_pooled or kind == "clip":
        return torch.zeros(1, width)
    if kind == "llama3":
        return torch.zeros(max(config.llama_layers) + 1, 1, num_tokens, width)
    if num_layers := config.get("num_text_layers"):
        return torch.zeros(1, num_tokens, num_layers, width)
    if "injection_layer_ids" in config:
        return torch.zeros(1, 1 + len(config.injection_layer_ids), num_tokens, width)
    return torch.zeros(1, num_tokens, width)


def width_of(kind: str, config: Any) -> Any:
    return next((config.get(key) for key in WIDTHS.get(kind, ()) if config.get(key)), 0)
