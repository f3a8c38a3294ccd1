"""Vision encoders of transformers, from folders as transformers saves them, against their own hidden_states."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ddae.backbones import Settings, load_backbone
from ddae.backbones.transformers_models import COMPARED

VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
CNN = {"hidden_sizes": [8, 16], "depths": [2, 1]}
CONFIGS: dict[str, dict[str, Any]] = {
    **{kind: {**VIT, "intermediate_size": 32} for kind in COMPARED},
    "dinov2": VIT, "dinov2_with_registers": VIT, "convnext": {**CNN, "num_stages": 2},
    "convnextv2": {**CNN, "num_stages": 2}, "resnet": {**CNN, "embedding_size": 8},
}  # fmt: skip
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "do_resize": True,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}  # fmt: skip
IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def randomised(network: Any) -> Any:
    torch.manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def save(folder: Path, network: Any, **processor: Any) -> str:
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **processor}))
    return f"transformers:{folder}"


def encoder_of(kind: str, **options: Any) -> Any:
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind] | options)
    return randomised(transformers.AutoModel.from_config(config))


def features(backbone: Any, images: torch.Tensor = IMAGES) -> dict[str, torch.Tensor]:
    x0 = backbone.encode(images)
    return backbone.activations(x0, x0, 0, [block.name for block in backbone.blocks])


def as_map(state: torch.Tensor) -> torch.Tensor:
    """The patches of 32x32 images, which stand last, 4 in a row."""
    return state if state.ndim == 4 else state[:, -16:].transpose(1, 2).unflatten(2, (4, 4))


@pytest.mark.parametrize("kind", COMPARED)
def test_blocks_are_the_hidden_states(kind, tmp_path):
    network = encoder_of(kind, **({"mask_ratio": 0.0} if kind == "vit_mae" else {}))
    backbone = load_backbone(save(tmp_path, network))
    inputs = {"noise": torch.arange(16.0).expand(2, -1)} if kind == "vit_mae" else {}
    with torch.no_grad():
        states = network(backbone.encode(IMAGES), **inputs, output_hidden_states=True).hidden_states
    maps = list(features(backbone).values())
    assert len(states) > 2
    for state in states:
        assert any(map.shape == as_map(state).shape and torch.equal(map, as_map(state)) for map in maps)


def test_a_mae_sees_all_patches_in_image_order(tmp_path):
    """Its first tokens are the patches' embeddings with their positions, row by row."""
    network = encoder_of("vit_mae")
    assert network.config.mask_ratio == 0.75
    backbone = load_backbone(save(tmp_path, network))
    x0 = backbone.encode(IMAGES)
    with torch.no_grad():
        patches = network.embeddings.patch_embeddings(x0) + network.embeddings.position_embeddings[:, 1:]
    assert torch.equal(features(backbone)["embeddings"], as_map(patches))
    assert {block.size for block in backbone.blocks} == {4}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_a_model_that_sees_and_reads_the_vision_tower_is_taken(kind, tmp_path):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.AutoConfig.for_model(
        kind, vision_config=CONFIGS[f"{kind}_vision_model"], text_config={**text, "vocab_size": 9}
    )
    both = randomised(transformers.AutoModel.from_config(config))
    backbone = load_backbone(save(tmp_path, both))
    with torch.no_grad():
        tower = both.vision_model(backbone.encode(IMAGES), output_hidden_states=True)
    last = backbone.blocks[-1].name
    assert last.endswith("layers.2") and torch.equal(features(backbone)[last], as_map(tower.hidden_states[-1]))


def test_images_are_prepared_as_the_processor_does(tmp_path):
    backbone = load_backbone(save(tmp_path, encoder_of("vit")))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    prepared = processor(images=list(IMAGES), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(backbone.encode(IMAGES), prepared)


def test_the_size_is_that_of_the_crop(tmp_path):
    crop = {"size": {"shortest_edge": 40}, "crop_size": {"height": 24, "width": 24}, "do_center_crop": True}
    name = save(tmp_path, encoder_of("dinov2"), image_processor_type="BitImageProcessor", **crop)
    backbone = load_backbone(name)
    assert (backbone.image_size, backbone.blocks[-1].size) == (24, 3)


@pytest.mark.parametrize("kind", ["vit", "clip_vision_model", "vit_mae", "dinov2"])
def test_other_sizes_interpolate_positions(kind, tmp_path):
    network = encoder_of(kind, **({"mask_ratio": 0.0} if kind == "vit_mae" else {}))
    name = save(tmp_path, network)
    backbone = load_backbone(name, Settings(image_size=48))
    x0 = backbone.encode(IMAGES)
    assert x0.shape[-1] == 48 and backbone.fingerprint != load_backbone(name).fingerprint
    given = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    if kind == "vit_mae":
        given["noise"] = torch.arange(36.0).expand(2, -1)
    with torch.no_grad():
        last = network(x0, **given, output_hidden_states=True).hidden_states[-1]
    expected = last[:, -36:].transpose(1, 2).unflatten(2, (6, 6))
    assert torch.equal(features(backbone)[backbone.blocks[-1].name], expected)


def test_without_a_processor_imagenets_preparation_is_taken_by_name(tmp_path, caplog):
    encoder_of("vit").save_pretrained(tmp_path)
    backbone = load_backbone(f"transformers:{tmp_path}")
    assert backbone.encoder.mean == (0.485, 0.456, 0.406) and backbone.image_size == 32
    assert "no preprocessor_config.json; taking images of side 32 with ImageNet's mean and standard" in caplog.text


def test_a_pooler_without_weights_is_left_out(tmp_path):
    """As in classifiers, whose heads take the place of the pooler."""
    config = transformers.AutoConfig.for_model("vit", **CONFIGS["vit"])
    backbone = load_backbone(save(tmp_path, randomised(transformers.ViTForImageClassification(config))))
    assert backbone.network.pooler is None and backbone.blocks[-1].name.endswith(".2")


def test_fingerprints_follow_weights_and_configuration(tmp_path):
    network = encoder_of("vit")
    first, moved = (load_backbone(save(tmp_path / name, network)).fingerprint for name in ("one", "two"))
    path = tmp_path / "two" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu"}))
    other = load_backbone(f"transformers:{tmp_path / 'two'}").fingerprint
    random, again = (load_backbone(f"transformers:{tmp_path / 'one'}@random").fingerprint for _ in range(2))
    assert first == moved and random == again and len({first, other, random}) == 3


def test_the_hub_cache_is_used(tmp_path, monkeypatch):
    repo = tmp_path / "models--lab--tiny-vit"
    save(repo / "snapshots" / "abc123", encoder_of("vit"))
    (repo / "refs").mkdir()
    (repo / "refs" / "v1").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = load_backbone("transformers:lab/tiny-vit@v1")
    local = load_backbone(f"transformers:{repo / 'snapshots' / 'abc123'}")
    assert backbone.fingerprint == local.fingerprint


def test_an_untested_kind_is_warned_about(tmp_path, caplog):
    config = transformers.IJepaConfig(**VIT, intermediate_size=32)
    load_backbone(save(tmp_path, transformers.IJepaModel(config)))
    assert "is a IJepaModel, whose blocks were never compared with its hidden_states" in caplog.text


def lacking(folder: Path) -> str:
    from safetensors.torch import load_file, save_file

    name = save(folder, encoder_of("vit"))
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "layernorm_before" not in k and "layers.1" not in k},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    return name


BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 9}


@pytest.mark.parametrize(
    ("make", "image_size", "expected"),
    [
        (lambda folder: "transformers:no/such-model", 0, r"'transformers:no/such-model': its weights cannot be had"),
        (lacking, 0, r"its weights cannot be had \(ValueError: .* lacks \d+ weights"),
        (
            lambda folder: save(folder, transformers.BertModel(transformers.BertConfig(**BERT))), 0,
            "is a BertModel, which takes no images or reorders patches; give a vision encoder: beit",
        ),
        (lambda folder: save(folder, encoder_of("vit")), 30, "image_size=30 does not suit .*; it takes multiples of 8"),
        (lambda folder: save(folder, encoder_of("siglip_vision_model"), do_rescale=False), 0, "do_rescale=False"),
        (lambda folder: save(folder, encoder_of("vit"), size={"height": 32, "width": 16}), 0, "square ones are needed"),
    ],
    ids=["unknown", "weights missing", "a text model", "size", "rescaling", "not square"],
)  # fmt: skip
def test_what_cannot_be_loaded_is_one_line(make, image_size, expected, tmp_path):
    with pytest.raises(ValueError, match=expected) as error:
        load_backbone(make(tmp_path), Settings(image_size=image_size))
    assert len(str(error.value).splitlines()) == 1
