"""Which blocks --blocks names."""

import pytest

from ddae.backbones import load_backbone
from sweeps.probing.source import choose_blocks


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["up.3.*", "mid"], ["mid", "up.3.0", "up.3.1"]),
        (["out_3", "*_block.attentions.0.to_q"], ["mid_block.attentions.0.to_q", "up.1.0"]),
        (["up_blocks.1.attentions.0.to_k"], ["up_blocks.1.attentions.0.to_k"]),
    ],
)
def test_names_patterns_and_paths(names, chosen):
    assert [block.name for block in choose_blocks(load_backbone("ddpm-fashion-mnist"), names)] == chosen


def test_what_names_no_block():
    backbone = load_backbone("ddpm-fashion-mnist")
    with pytest.raises(ValueError, match=r"block='nothing\*' is not known; .* layer_noise.py --list-blocks --all"):
        choose_blocks(backbone, ["nothing*"])
    with pytest.raises(ValueError, match=r"block='\*.nonlinearity' names \d+ modules, and none returns a map of the"):
        choose_blocks(backbone, ["*.nonlinearity"])
