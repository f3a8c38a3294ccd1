"""Files of weights give their tensors, and nothing in them runs."""

import argparse
import io
import json
import os
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from ddae.backbones.checkpoints import read_checkpoint, read_options
from tests.ddae.backbones import official

STATE = {"stem.weight": torch.arange(6.0).reshape(2, 3), "stem.bias": torch.tensor([1.0, 2.0], dtype=torch.float16)}
OTHER = {name: -tensor for name, tensor in STATE.items()}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_is_state(state):
    assert list(state) == list(STATE)
    for name, tensor in STATE.items():
        assert torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype
        assert not state[name].requires_grad


LAYOUTS = {
    "a state dict": STATE,
    "parameters and more": {name: torch.nn.Parameter(tensor) for name, tensor in STATE.items()} | {"epoch": 3},
    "a DataParallel": prefixed("module.", STATE),
    "compiled": prefixed("_orig_mod.", STATE),
    "EDM's": prefixed("model.", STATE),
    "Lightning's": {"state_dict": prefixed("model.", STATE), "epoch": 3, "hyper_parameters": {"lr": 1e-4}},
    "DiT's": {"model": OTHER, "ema": STATE, "opt": {}, "args": argparse.Namespace(model="DiT-S/2", lr=1e-4)},
    "DDAE's": {
        "MODEL": prefixed("module.nn_model.", OTHER),
        "EMA": {
            "initted": torch.tensor(True),
            "step": torch.tensor(9),
            **prefixed("online_model.nn_model.", OTHER),
            **prefixed("ema_model.nn_model.", STATE),
            "ema_model.augpipe.Hz_geom": torch.ones(6),
        },
        "opt": {"state": {}, "param_groups": []},
    },
    "DDAE's without average": {"MODEL": prefixed("module.nn_model.", STATE) | prefixed("module.augpipe.", OTHER)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_the_network_is_found_in_what_training_codes_save(layout, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    torch.save(LAYOUTS[layout], path)
    assert_is_state(read_checkpoint(path))


def test_safetensors_are_read(tmp_path):
    save_file(prefixed("module.", STATE), tmp_path / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in read_checkpoint(tmp_path / "model.safetensors").items()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }


def test_a_prefix_that_not_all_share_is_part_of_the_names(tmp_path):
    mixed = prefixed("model.", STATE) | {"head.weight": torch.ones(1)}
    torch.save(mixed, tmp_path / "model.pt")
    assert list(read_checkpoint(tmp_path / "model.pt")) == list(mixed)


def test_a_snapshot_of_nvlabs_is_read_without_its_code(tmp_path):
    state = official.random_state(official.song_unet_shapes(num_augments=9))
    source = f"open({str(tmp_path / 'ran')!r}, 'w')"
    official.edm_snapshot(tmp_path / "network.pkl", state, module_src=source, sigma_data=0.5)
    read = read_checkpoint(tmp_path / "network.pkl")
    assert read.pop("sigma_data") == 0.5
    assert set(read) == set(state) and all(torch.equal(read[name], state[name]) for name in state)
    assert not (tmp_path / "ran").exists()


def test_a_training_state_of_nvlabs_is_read(tmp_path):
    network = official.nvlabs_module(prefixed("model.", STATE), "EDMPrecond")
    official.nvlabs_save(tmp_path / "state.pt", {"net": network, "optimizer_state": {"state": {}}})
    assert_is_state(read_checkpoint(tmp_path / "state.pt"))


class Calls:
    """Pickled as a call, as every object is whose unpickling runs code."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(data, **options):
    file = io.BytesIO()
    torch.save(data, file, **options)
    return file.getvalue()


HOSTILE = {
    "os.system": lambda ran: Calls(os.system, f"touch {ran}"),
    "eval": lambda ran: Calls(eval, f"open({str(ran)!r}, 'w')"),
    "exec": lambda ran: Calls(exec, f"open({str(ran)!r}, 'w')"),
    "open": lambda ran: Calls(open, str(ran), "w"),
    "in a list": lambda ran: [OrderedDict(a=Calls(os.system, f"touch {ran}"))],
    "in a storage": lambda ran: Calls(
        torch.storage._load_from_bytes, saved(Calls(os.system, f"touch {ran}"), _use_new_zipfile_serialization=False)
    ),
    "in a zipped storage": lambda ran: Calls(torch.storage._load_from_bytes, saved(Calls(os.system, f"touch {ran}"))),
    "as arguments of a module": lambda ran: Calls(torch.nn.ModuleDict, {"a": Calls(os.system, f"touch {ran}")}),
}


def assert_refused(path, ran, match=None):
    with pytest.raises(ValueError, match=match) as refusal:
        read_checkpoint(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not ran.exists()


@pytest.mark.parametrize("attack", HOSTILE)
@pytest.mark.parametrize("suffix", [".pkl", ".pt"])
def test_nothing_in_a_hostile_file_runs(attack, suffix, tmp_path):
    ran = tmp_path / "ran"
    data = {"ema": {"stem.weight": STATE["stem.weight"], "stem.bias": HOSTILE[attack](ran)}}
    write = {".pkl": pickle.dumps, ".pt": saved}[suffix]
    (tmp_path / f"model{suffix}").write_bytes(write(data))
    assert_refused(tmp_path / f"model{suffix}", ran, "asks for .* state_dict")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_protocol_of_pickle_gets_around(protocol, tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"ema": Calls(os.system, f"touch {ran}")}, protocol))
    assert_refused(tmp_path / "model.pkl", ran, r"asks for (posix|nt)\.system")


@pytest.mark.parametrize(
    ("opcodes", "match"),
    [
        (b"(S'touch {ran}'\nios\nsystem\n.", "asks for os.system"),
        (b"(cos\nsystem\nS'touch {ran}'\no.", "asks for os.system"),
        (b"ctorch\nhub.load\n.", "asks for torch.hub.load"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", r"asks for collections.OrderedDict.__init__"),
        (b"Pnetwork\n.", "damaged"),
        (b"\x82\x01.", "damaged"),
    ],
    ids=["INST", "OBJ", "GLOBAL with a dot", "STACK_GLOBAL with a dot", "PERSID", "EXT1"],
)
def test_no_opcode_of_pickle_gets_around(opcodes, match, tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "model.pkl").write_bytes(opcodes.replace(b"{ran}", os.fsencode(ran)))
    assert_refused(tmp_path / "model.pkl", ran, match)


def test_an_inert_class_takes_arguments_and_does_nothing(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"ema": Calls(torch.nn.ModuleDict, [["a", "b"]])}))
    assert_refused(tmp_path / "model.pkl", ran)


def test_whole_modules_are_refused_with_what_to_do(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    assert_refused(
        tmp_path / "model.pt", tmp_path / "ran", r"asks for torch\.nn\.modules\.linear\.Linear.* save the state_dict"
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".pkl"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_damaged_files_are_refused(suffix, damage, tmp_path):
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(STATE, path)
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps({"ema": STATE}))
    else:
        torch.save({"ema": STATE}, path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"hello world" * 9}[damage])
    assert_refused(path, tmp_path / "ran", "damaged, cut short")


@pytest.mark.parametrize("data", [[1, 2], torch.ones(3), {"epoch": 3}, {"ema": {"shadow_params": []}}])
@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_files_without_named_tensors_are_refused(data, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes({".pkl": pickle.dumps, ".pt": saved}[suffix](data))
    assert_refused(path, tmp_path / "ran")


def test_a_network_that_is_its_own_average_ends(tmp_path):
    endless = {}
    endless["ema"] = endless
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(endless))
    assert_refused(tmp_path / "model.pkl", tmp_path / "ran", "damaged")


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_options_lie_beside_a_checkpoint(suffix, tmp_path):
    assert read_options(tmp_path / "model.pt") == {}
    options = {"num_heads": 6, "attention_resolutions": [32, 16], "lr": 1e-05, "class_cond": False}
    (tmp_path / f"model{suffix}").write_text(
        json.dumps(options)
        if suffix == ".json"
        else "num_heads: 6\nattention_resolutions: [32, 16]\nlr: 1.0e-5\nclass_cond: false\n"
    )
    assert read_options(tmp_path / "model.pt") == options


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("model.json", "[1, 2]", "must be a mapping .* not list"),
        ("model.yaml", "", "must be a mapping .* not NoneType"),
        ("model.json", "{'a': 1}", "cannot be read"),
        ("model.yaml", "a: [1,\nb: 2", "cannot be read"),
        ("model.yml", "!!python/object/apply:os.system ['touch ran']", "cannot be read"),
    ],
)
def test_options_that_are_none_are_refused(name, content, match, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=match) as refusal:
        read_options(tmp_path / "model.pt")
    assert str(tmp_path / name) in str(refusal.value) and "\n" not in str(refusal.value)
