"""Weights that are kept in CPU memory, or on disk, and moved layer by layer to the device."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map_only

from ddae.backbones import Settings, load_backbone
from ddae.backbones.offload import check_room, offload, onload, size_bytes
from tests.ddae.backbones.every_class import FOLDERS, SOMETIMES, classes
from tests.ddae.backbones.test_every_class import REFUSED, settings_of


def maps(backbone, x_t):
    names = [block.name for block in backbone.blocks]
    return backbone.activations(x_t, None, backbone.schedule.defaults[-1], names, torch.clone)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_features_and_keys_are_the_same(tiny_name, tiny_backbone):
    offloaded = load_backbone(tiny_name, Settings(offload=True))
    assert offloaded.fingerprint == tiny_backbone.fingerprint and offloaded.blocks == tiny_backbone.blocks
    x_t = torch.randn(2, *tiny_backbone.encoder.shape)
    for _ in range(2):
        assert_same(maps(offloaded, x_t), maps(tiny_backbone, x_t))


def test_modules_are_blocks_by_their_paths_as_well(tmp_path):
    FOLDERS["FluxPipeline"](tmp_path)
    whole, offloaded = (load_backbone(str(tmp_path), Settings(image_size=32, offload=on)) for on in (False, True))
    x_t, names = torch.randn(2, *whole.encoder.shape), ["transformer_blocks.1.attn.to_q", "block.1", "time_text_embed"]
    whole.add_modules(names)
    offloaded.add_modules(names)
    assert_same(maps(offloaded, x_t), maps(whole, x_t))


def called_of(backbone) -> set[str]:
    return backbone._trace()[2]


def forget_weights(network: nn.Module, called: set[str]) -> None:
    """What is not fetched before it is used shows as NaN."""
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False) if name in called else ():
            parameter.data.fill_(torch.nan)


@pytest.mark.parametrize("name", classes(REFUSED, SOMETIMES))
@torch.no_grad()
def test_every_class_fetches_each_weight_before_it_uses_it(name, tmp_path, on_a_gpu_that_is_not_there):
    FOLDERS[name](tmp_path / "model")
    backbone = load_backbone(str(tmp_path / "model"), replace(settings_of(name), offload=True))
    onload(backbone.network)
    x_t, called = torch.randn(2, *backbone.encoder.shape), called_of(backbone)
    expected = maps(backbone, x_t)
    offload(backbone.network, "cpu", called, str(tmp_path / "weights"))
    forget_weights(backbone.network, called)
    assert_same(maps(backbone, x_t), expected)
    onload(backbone.network)
    on_a_gpu_that_is_not_there(backbone, called)


@pytest.fixture
def on_a_gpu_that_is_not_there(monkeypatch):
    """Runs a network with tensors that have a device and a shape and no numbers, which fails where two that are
    calculated with are on different devices."""
    data = torch.Tensor.data

    def set_data(tensor, value):
        data.__set__(tensor, value)
        tensor.fake_device = value.fake_device

    def to(module, device, non_blocking=False):
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.to(device)

    def run(backbone, called):
        network = backbone.network
        given = backbone.inputs(torch.zeros(2, *backbone.encoder.shape), backbone.schedule.defaults[-1])
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, monkeypatch.context() as patched:
            for module in network.modules():
                for tensors in (module._parameters, module._buffers):
                    tensors |= {name: mode.from_tensor(each) for name, each in tensors.items() if each is not None}
            patched.setattr(FakeTensor, "data", property(data.__get__, set_data), raising=False)
            patched.setattr(nn.Module, "to", to)
            offload(network, "cuda", called)
            with suppress(DataDependentOutputException, DynamicOutputShapeException):  # where it looks at numbers
                network(**tree_map_only(torch.Tensor, lambda tensor: mode.from_tensor(tensor).to("cuda"), given))

    return run


def test_a_weight_that_stays_behind_would_be_seen(tmp_path, on_a_gpu_that_is_not_there):
    FOLDERS["HunyuanDiTPipeline"](tmp_path)
    backbone = load_backbone(str(tmp_path))
    every = {name for name, _ in backbone.network.named_modules()}
    with pytest.raises(FakeTensorDeviceMismatchError, match="at least two devices"):
        on_a_gpu_that_is_not_there(backbone, every)


def test_a_gpu_that_is_too_small_is_refused_with_both_numbers(monkeypatch):
    network = nn.Linear(1000, 1000)
    assert size_bytes(network) == 4 * 1001 * 1000
    for free in (10**6, 10**7):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**8))
        if free < size_bytes(network):
            with pytest.raises(ValueError, match=r"take 4 MB, and cuda:0 has 1 MB free; --offload keeps"):
                check_room(network, "cuda:0")
        else:
            check_room(network, "cuda:0")


def test_it_does_not_go_with_compile():
    with pytest.raises(ValueError, match="compile=True does not go with offload=True"):
        Settings(compile=True, offload=True)
