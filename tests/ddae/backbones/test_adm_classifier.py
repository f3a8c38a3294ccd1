import json

import pytest
import torch
from torch.nn import functional

from ddae.backbones import load_backbone
from tests.ddae.backbones.official import adm_classifier_shapes, adm_shapes, random_state

OPTIONS = {"image_size": 16, "num_head_channels": 32, "num_res_blocks": 1}


@pytest.fixture
def saved(tmp_path):
    """(name, shapes) -> (tensors, backbone)."""

    def saved(name, shapes):
        state = random_state(shapes)
        torch.save(state, tmp_path / name)
        (tmp_path / name).with_suffix(".json").write_text(json.dumps(OPTIONS))
        return state, load_backbone(str(tmp_path / name))

    return saved


def test_its_blocks_are_those_of_the_unet_with_the_same_tensors(saved):
    _, unet = saved("unet.pt", adm_shapes())
    _, classifier = saved("classifier.pt", adm_classifier_shapes())
    names = [block.name for block in classifier.blocks]
    assert names[-2:] == ["mid", "scores"] and classifier.block("mid").alias == "b7"
    x0, noise = torch.randn(2, 2, 3, 16, 16)
    maps = classifier.activations(x0, noise, 90, names[:-1])
    for name, map in unet.activations(x0, noise, 90, names[:-1]).items():
        torch.testing.assert_close(maps[name], map)


def test_its_scores_are_what_the_official_pooling_gives(saved):
    state, backbone = saved("classifier.pt", adm_classifier_shapes(num_classes=5))
    maps = backbone.activations(*torch.randn(2, 2, 3, 16, 16), 0, ["mid", "scores"])
    x = functional.silu(functional.group_norm(maps["mid"], 32, state["out.0.weight"], state["out.0.bias"])).flatten(2)
    tokens = torch.cat([x.mean(2, keepdim=True), x], 2) + state["out.2.positional_embedding"]
    qkv = functional.conv1d(tokens, state["out.2.qkv_proj.weight"], state["out.2.qkv_proj.bias"])
    q, k, v = qkv.chunk(3, dim=1)  # one head: 64 channels
    weights = torch.einsum("nct,ncs->nts", q, k).div(64**0.5).softmax(-1)
    pooled = torch.einsum("nts,ncs->nct", weights, v)
    scores = functional.conv1d(pooled, state["out.2.c_proj.weight"], state["out.2.c_proj.bias"])[:, :, 0]
    assert maps["scores"].shape == (2, 5, 1, 1)
    torch.testing.assert_close(maps["scores"].flatten(1), scores, rtol=1e-4, atol=1e-5)


def test_another_size_than_its_positions_have_is_one_line(saved, tmp_path):
    saved("classifier.pt", adm_classifier_shapes())
    (tmp_path / "classifier.json").write_text(json.dumps(OPTIONS | {"image_size": 32}))
    with pytest.raises(ValueError, match="positions are those of 16 pixels"):
        load_backbone(str(tmp_path / "classifier.pt"))
    (tmp_path / "classifier.json").write_text(json.dumps(OPTIONS | {"num_res_blocks": 6}))
    with pytest.raises(ValueError, match="input blocks, and not 6 a level"):
        load_backbone(str(tmp_path / "classifier.pt"))
