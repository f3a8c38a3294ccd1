"""A network's tensors, and what a reader of files of weights must do with them."""

import io

import pytest
import torch

from ddae.backbones.checkpoints import read_checkpoint

STATE = {"stem.weight": torch.arange(6.0).reshape(2, 3), "stem.bias": torch.tensor([1.0, 2.0], dtype=torch.float16)}
OTHER = {name: -tensor for name, tensor in STATE.items()}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_is_state(state):
    assert list(state) == list(STATE)
    for name, tensor in STATE.items():
        assert torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype
        assert not state[name].requires_grad


def saved(data, **options):
    file = io.BytesIO()
    torch.save(data, file, **options)
    return file.getvalue()


def assert_refused(path, ran, match=None):
    with pytest.raises(ValueError, match=match) as refusal:
        read_checkpoint(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not ran.exists()
