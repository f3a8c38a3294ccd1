"""Networks of timm: timm:name[.weights], timm:folder or timm:owner/model[@revision]."""

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ddae.backbones.base import Backbone, Settings
from ddae.backbones.classifiers import RANDOM, Classifier, Standardised, build, check_known, make_backbone


def load(model: str, settings: Settings) -> Backbone:
    """Loads a network by timm's own name, from a folder that timm has saved, or by a hub id; with `@random` its weights
    are random. HF_HOME keeps what is downloaded.

    timm's feature_info names the features of most networks, in convolutional ones often a single map for each stage.
    They are blocks here, and so are the blocks inside the stages, which the module tree has.
    """
    import timm
    from timm.data import resolve_model_data_config
    from timm.models import Hiera

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
    fixed = settings.image_size and not source and timm.get_pretrained_cfg_value(name, "fixed_input_size")
    pretrained, size = weights_name != RANDOM, settings.image_size if fixed else None
    network = build(
        f"timm:{name}", lambda: timm.create_model(source + name, pretrained=pretrained, img_size=size), "HF_HOME"
    )
    config, architecture = resolve_model_data_config(network), network.pretrained_cfg["architecture"]
    read_at = reordered(network) if isinstance(network, Hiera) else {}
    architecture += " in image order" if read_at else ""
    encoder = Standardised(settings.image_size or config["input_size"][-1], tuple(config["mean"]), tuple(config["std"]))
    modules = dict(network.named_modules())
    features = [info["module"] for info in getattr(network, "feature_info", ())]
    named = tuple(path for path in features if path and path in modules)
    num_prefix_tokens = getattr(network, "num_prefix_tokens", 0)
    found = Classifier(f"timm:{model}", network, architecture, encoder, None, named, num_prefix_tokens, read_at)
    return make_backbone(found, settings)


class InImageOrder(nn.Module):
    """Arranges the tokens of a Hiera block, which are grouped by mask unit, as a map [N, S, S, C]."""

    def __init__(self, reroll: nn.Module, index: int):
        super().__init__()
        self.arranged = partial(reroll, block_idx=index)  # no child, or the search would find it

    def forward(self, tokens: Tensor) -> Tensor:
        return self.arranged(tokens)


def reordered(network: Any) -> dict[str, str]:
    """Gives the output of each block of a Hiera (Ryali et al. 2023) to a module that returns it in image order. The
    blocks themselves compute what they did. Returns the paths of these modules by the paths of their blocks."""
    network.in_order = nn.ModuleList(InImageOrder(network.reroll, index) for index in range(len(network.blocks)))

    def pass_on(index: int, block: nn.Module, inputs: tuple, output: Tensor) -> None:
        network.in_order[index](output)

    for index, block in enumerate(network.blocks):
        block.register_forward_hook(partial(pass_on, index))
    return {f"blocks.{index}": f"in_order.{index}" for index in range(len(network.blocks))}
