"""Networks that classify, of torchvision and timm."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision

from ddae.backbones import Settings, load_backbone
from ddae.backbones.module_search import find_blocks, to_map
from ddae.datasets import load_dataset
from ddae.features import FeatureKey, extract

KEY = FeatureKey("weights", "images", split_seed=0, val_fraction=0.2, noise_seed=0, draw=0, pooling=4)
RESNET18_FILE = "hub/checkpoints/resnet18-f37072fd.pth"
"""Where torchvision keeps what it has downloaded, in TORCH_HOME."""

BLOCKS = {
    "resnet18": [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)],
    "vgg11_bn": [f"features.{last}" for last in (3, 7, 10, 14, 17, 21, 24, 28)],
    "vit_b_16": [f"encoder.layers.encoder_layer_{i}" for i in range(12)],
    "swin_t": ["features.0", "features.1.0", "features.1.1", "features.2", "features.3.0", "features.3.1", "features.4",
               *(f"features.5.{i}" for i in range(6)), "features.6", "features.7.0", "features.7.1"],
    "test_convnext3": ["stem", "stages.0.blocks.0",
                       *(f"stages.{i}.{part}" for i in (1, 2, 3) for part in ("downsample", "blocks.0"))],
    "test_efficientnet": ["bn1", *(f"blocks.{i}.0" for i in range(5)), "bn2"],
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """TORCH_HOME with weights of our own where torchvision's download would lie, and the network that they are of."""
    home = tmp_path_factory.mktemp("torch")
    torch.manual_seed(1)
    network = torchvision.models.resnet18().eval()
    (home / RESNET18_FILE).parent.mkdir(parents=True)
    torch.save(network.state_dict(), home / RESNET18_FILE)
    return home, network


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_found_in_the_module_tree(name):
    with torch.device("meta"):
        network = (timm.create_model if name.startswith("test") else torchvision.models.get_model)(name).eval()
    specs = find_blocks(network, {"x": torch.zeros(1, 3, 224, 224, device="meta")})
    assert [spec.name for spec in specs] == BLOCKS[name]


@pytest.mark.parametrize(
    ("name", "num_blocks", "num_named"),
    [
        ("test_vit", 7, 6), ("test_resnet", 8, 5), ("test_convnext3", 8, 4), ("test_nfnet", 10, 5),
        ("swin_tiny_patch4_window7_224", 16, 4), ("mvitv2_tiny", 11, 4), ("hiera_tiny_224", 13, 4),
    ],
)  # fmt: skip
def test_timms_own_intermediates_are_among_the_blocks(name, num_blocks, num_named):
    backbone = load_backbone(f"timm:{name}@random")
    x = torch.randn(1, *backbone.encoder.shape)
    with torch.no_grad():
        intermediates = backbone.network.forward_intermediates(x, intermediates_only=True)
    maps = backbone.activations(x, x, 0, [block.name for block in backbone.blocks])
    assert (len(maps), len(intermediates)) == (num_blocks, num_named)
    for wanted in intermediates:
        assert any(map.shape == wanted.shape and torch.equal(map, wanted) for map in maps.values())


def test_timms_names_of_stages_are_aliases():
    """A stage returns what the last block in it returns, which keeps its name."""
    backbone = load_backbone("timm:resnet18@random")
    assert {block.alias: block.name for block in backbone.blocks if block.alias} == {
        f"layer{stage}": f"layer{stage}.1" for stage in (1, 2, 3, 4)
    }
    assert [block.name for block in backbone.blocks] == ["act1", *BLOCKS["resnet18"]]


def test_maps_and_tokens_of_all_layouts():
    maps = torch.randn(2, 5, 3, 3)
    tokens = maps.flatten(2).transpose(1, 2)
    assert torch.equal(to_map(maps), maps)
    assert torch.equal(to_map(maps.permute(0, 2, 3, 1)), maps)
    assert torch.equal(to_map(tokens), maps)
    assert torch.equal(to_map(torch.cat([torch.randn(2, 5, 5), tokens], dim=1)), maps)
    few = maps[:, :, :2, :2]
    behind_registers = torch.cat([torch.randn(2, 5, 5), few.flatten(2).transpose(1, 2)], dim=1)  # 9 tokens, no 3 x 3
    assert torch.equal(to_map(behind_registers, num_prefix_tokens=5), few)


def test_torchvisions_weights_and_its_own_preparation(published, monkeypatch):
    home, network = published
    monkeypatch.setenv("TORCH_HOME", str(home))
    backbone = load_backbone("torchvision:resnet18", Settings(image_size=64))
    assert load_backbone("torchvision:resnet18@IMAGENET1K_V1", Settings(image_size=64)).fingerprint == (
        backbone.fingerprint
    )
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms(crop_size=64, resize_size=64)
    kept = []
    network.layer3[1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        network(preset(images))
    x0 = backbone.encode(images)
    ours = backbone.activations(x0, torch.randn_like(x0), 0, ["layer3.1"])["layer3.1"]
    torch.testing.assert_close(ours, kept[0], rtol=1e-4, atol=1e-4)


def test_a_file_that_is_no_weights_is_not_run(published, monkeypatch, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / RESNET18_FILE).parent.mkdir(parents=True)
    (tmp_path / RESNET18_FILE).write_bytes(pickle.dumps(Evil(), protocol=2))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="resnet18': its weights cannot be had"):
        load_backbone("torchvision:resnet18")
    assert not (tmp_path / "ran").exists()


def test_small_grey_images_are_extracted_and_odd_maps_kept_whole():
    backbone = load_backbone("torchvision:resnet18@random", Settings(image_size=72))
    dataset = load_dataset("digits", backbone.image_size)
    rows = dataset.splits["train"][:2]
    assert dataset.images.read(rows).shape == (2, 3, 8, 8)
    features = extract(backbone, dataset, rows, 0, ["layer3.0", "layer3.1"], KEY)
    x0 = backbone.encode(dataset.images.read(rows))
    full = backbone.activations(x0, x0, 0, ["layer3.0"])["layer3.0"]
    assert full.shape == (2, 256, 5, 5)
    assert np.array_equal(features["layer3.0"], full.flatten(1).half().numpy())


def test_a_folder_that_timm_has_saved(tmp_path):
    torch.manual_seed(2)
    network = timm.create_model("test_resnet", in_chans=1, num_classes=3).eval()
    config = {"mean": (0.5,), "std": (0.25,), "input_size": (1, 48, 48)}
    timm.models.save_for_hf(network, tmp_path / "mine", data_config=config)
    backbone = load_backbone(f"timm:{tmp_path / 'mine'}")
    (tmp_path / "mine").rename(tmp_path / "elsewhere")
    assert load_backbone(f"timm:{tmp_path / 'elsewhere'}").fingerprint == backbone.fingerprint
    assert backbone.encoder.shape == (1, 48, 48)
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    x0 = backbone.encode(images)
    torch.testing.assert_close(x0, (images.float().mean(1, keepdim=True) / 255 - 0.5) / 0.25)
    kept = []
    network.layer4.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        network(x0)
    name = backbone.blocks[-1].name
    torch.testing.assert_close(backbone.activations(x0, x0, 0, [name])[name], kept[0])


def test_tokens_are_a_grid_behind_the_class_token():
    backbone = load_backbone("timm:test_vit@random")
    kept = []
    backbone.network.blocks[2].register_forward_hook(lambda module, inputs, output: kept.append(output))
    x0 = torch.randn(1, *backbone.encoder.shape)
    tokens = backbone.activations(x0, x0, 0, ["blocks.2"])["blocks.2"].flatten(2).transpose(1, 2)
    assert torch.equal(tokens, kept[0][:, backbone.network.num_prefix_tokens :])


def test_random_weights_are_the_same_everywhere_and_other_sizes_other_features():
    torch.manual_seed(3)
    first = load_backbone("timm:test_vit@random")
    state = torch.get_rng_state()
    second, larger = (load_backbone("timm:test_vit@random", Settings(image_size=size)) for size in (0, 192))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint == second.fingerprint != larger.fingerprint
    assert [backbone.blocks[-1].size for backbone in (first, larger)] == [10, 12]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "torchvision:resnet81",
            r"backbone='torchvision:resnet81' is none of torchvision's \d+; did you mean 'resnet18'",
        ),
        ("torchvision:resnet18@V3", r"resnet18 has no weights 'V3'; allowed: IMAGENET1K_V1, DEFAULT, random"),
        (
            "torchvision:resnet18",
            r"resnet18': its weights cannot be had .* or give torchvision:resnet18@random for rand",
        ),
        ("torchvision:", r"backbone='torchvision:' is none of torchvision's"),
        ("timm:test_vti", r"backbone='timm:test_vti' is none of timm's \d+; did you mean 'test_vit"),
        ("timm:test_vit", r"timm:test_vit': its weights cannot be had .* or give timm:test_vit@random for random ones"),
        ("timm:resnet18.nowhere", r"timm:resnet18.nowhere': .*nowhere"),
        ("timm:test_vit@V1", r"timm:test_vit@V1: timm names weights behind a dot, as in resnet18.a1_in1k"),
        ("timm:./nowhere", r"timm:./nowhere': its weights cannot be had"),
    ],
)
def test_mistakes_are_named(name, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(ValueError, match=expected):
        load_backbone(name)


def test_a_size_that_the_network_does_not_take():
    with pytest.raises(ValueError, match=r"squeezenet1_1@random' does not run on images of side 9 \(.*--image-size"):
        load_backbone("torchvision:squeezenet1_1@random", Settings(image_size=9))


def test_weights_of_self_supervised_training_are_taken_from_their_file(tmp_path):
    """As SwAV and VISSL write them: under a prefix, in dictionaries, with heads that the network has not."""
    from torchvision.models import resnet18

    torch.manual_seed(5)
    state = {name: each for name, each in resnet18().state_dict().items() if not name.startswith("fc.")}
    swav = {f"module.{name}": each for name, each in state.items()} | {"module.prototypes.weight": torch.ones(3, 8)}
    trunk = {f"_feature_blocks.{name}": each for name, each in state.items()}
    torch.save(swav, tmp_path / "swav.pth.tar")
    torch.save({"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": {}}}}}, tmp_path / "sim.torch")
    for file in ("swav.pth.tar", "sim.torch"):
        backbone = load_backbone(f"torchvision:resnet18@{tmp_path / file}")
        assert torch.equal(backbone.network.state_dict()["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"])
    torch.save({"module.conv1.weight": torch.ones(64, 3, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="has no tensors of this network"):
        load_backbone(f"torchvision:resnet18@{tmp_path / 'other.pth'}")
