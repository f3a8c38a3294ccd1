"""Files of weights give their tensors, and nothing in them runs."""

import argparse
import contextlib
import io
import itertools
import json
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from ddae.backbones.checkpoints import open_checkpoint, read_checkpoint, read_options
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


FLAT = {name.replace(".", ""): tensor for name, tensor in prefixed("diffusion_model.", STATE).items()}
BUFFERS = {"betas": torch.ones(3), "alphas_cumprod": torch.ones(3)}

AVERAGES = {
    "timm's": {"state_dict": OTHER, "state_dict_ema": STATE},
    "model_ema": {"model": OTHER, "model_ema": STATE},
    "ema first": {"ema_model": STATE, "model": OTHER},
    "ema_state_dict": {"model_state_dict": OTHER, "ema_state_dict": prefixed("module.", STATE)},
    "BasicSR's": {"params": OTHER, "params_ema": STATE},
    "net_ema": {"net": OTHER, "net_ema": STATE},
    "EMA of capitals": {"state": {"model": OTHER, "EMA": STATE}},
    "ema.shadow": {"model": OTHER, "ema": {"decay": 0.9999, "shadow": STATE}},
    "shadow_params": {"model": OTHER, "ema": {"decay": 0.9, "num_updates": 3, "shadow_params": list(STATE.values())}},
    "a list in the optimizer": {"model": OTHER, "optimizer_states": [{"ema": list(STATE.values()), "state": {}}]},
    "by parameter in the optimizer": {
        "model": OTHER,
        "opt": {"state": {i: {"exp_avg": -each, "ema": each} for i, each in enumerate(STATE.values())}},
    },
    "model_avg": {"model": OTHER, "model_avg": STATE},
    "avg_model": {"avg_model_state": STATE, "model_state": OTHER},
    "GAN's": {"g": OTHER, "d": OTHER, "g_ema": STATE},
    "a list in a callback": {"state_dict": OTHER, "callbacks": {"EMA": {"ema_weights": list(STATE.values())}}},
    "torch's AveragedModel": {"net": OTHER, "copy": {"n_averaged": torch.tensor(7), **prefixed("module.", STATE)}},
    "AveragedModel by name": {
        "net": OTHER,
        "averaged_model": {"n_averaged": torch.tensor(7), **prefixed("module.", STATE)},
    },
    "swa": {"model": OTHER, "swa_model": STATE},
    "LitEma": {
        "state_dict": prefixed("model.diffusion_model.", OTHER)
        | {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(9)}
        | prefixed("model_ema.", FLAT)
        | BUFFERS
    },
    "LitEma of the module": {
        "state_dict": prefixed("model.", OTHER)
        | prefixed("model_ema.", {name.replace(".", ""): tensor for name, tensor in STATE.items()})
    },
    "ema_pytorch": prefixed("ema_model.", STATE) | prefixed("online_model.", OTHER) | {"initted": torch.tensor(True)},
    "one file, two prefixes": {"state_dict": prefixed("model.", OTHER) | prefixed("ema.", STATE)},
    "the innermost word": {"ema": {"online_model": OTHER, "ema_model": STATE}},
}
"""Where training codes keep the average of the weights, beside the weights themselves."""

WRAPPED = {
    "DeepSpeed": {"module": prefixed("module.", STATE), "optimizer": None, "ds_config": {}},
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(6)}}}},
    "net": prefixed("net.", STATE),
    "three": prefixed("module.net.denoise_fn.", STATE),
    "in another order": prefixed("denoise_fn.module._orig_mod.", STATE),
    "Lightning with buffers": {"state_dict": prefixed("model.diffusion_model.", STATE) | BUFFERS},
    "Lightning with a VAE": {
        "state_dict": prefixed("model.diffusion_model.", STATE)
        | prefixed("first_stage_model.encoder.", OTHER)
        | prefixed("cond_stage_model.transformer.", OTHER)
        | prefixed("loss.discriminator.", OTHER)
        | BUFFERS
    },
    "compiled and sharded inside": {
        name.replace("stem.", "stem._fsdp_wrapped_module._orig_mod."): tensor for name, tensor in STATE.items()
    },
    "AveragedModel alone": {"n_averaged": torch.tensor(7), **prefixed("module.", STATE)},
    "nested keys": {"a": {"b": [{"weights": prefixed("network.", STATE)}]}},
    "momenta are no averages": {
        "model": STATE,
        "optimizer": {"state": {i: {"exp_avg": -each, "exp_avg_sq": each} for i, each in enumerate(STATE.values())}},
    },
    "lists of momenta": {"model": STATE, "optimizer": {"exp_avg": [-each for each in STATE.values()]}},
    "the same twice": {"model": STATE, "ema": dict(STATE)},
    "a discriminator": {"model": STATE, "discriminator": OTHER, "lpips": OTHER},
}
"""What stands around the weights of one network."""


@pytest.mark.parametrize("layout", AVERAGES)
@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_the_average_of_the_weights_is_preferred(layout, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    write_as(path, AVERAGES[layout])
    assert_is_state(read_checkpoint(path))


@pytest.mark.parametrize("suffix", [".pkl", ".bin", ".pth.tar", ".weights"])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read_by_any_name(suffix, zipped, tmp_path):
    torch.save({"ema": STATE}, tmp_path / f"model{suffix}", _use_new_zipfile_serialization=zipped)
    assert_is_state(read_checkpoint(tmp_path / f"model{suffix}"))


@pytest.mark.parametrize("layout", WRAPPED)
def test_wrappers_are_looked_through(layout, tmp_path):
    torch.save(WRAPPED[layout], tmp_path / "model.pt")
    assert_is_state(read_checkpoint(tmp_path / "model.pt"))


def write_as(path, data):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, path)


HALVES = {"state_dict": STATE | {"a.weight": torch.ones(2)}, "best_ema": OTHER | {"b.weight": torch.ones(2)}}
STRANGE = torch.ones(3)

SEVERAL = {
    "networks": ({"generator": STATE, "other": OTHER}, "2 networks that differ, generator, other", "generator"),
    "averages": ({"model": OTHER, "ema_0.99": OTHER, "ema_0.9999": STATE}, "ema_0.99, ema_0.9999", "ema_0.9999"),
    "a list that does not fit": (
        {"model": STATE, "ema": {"shadow_params": [STRANGE]}}, "under ema.shadow_params", "model"
    ),
    "other names": ({"model": STATE, "ema": {"weights": {"stemweight": STRANGE}}}, "under ema.weights", "model"),
    "targets": ({"model": STATE, "target_model": OTHER}, "model, target_model", "model"),
    "averages of parts": ({**HALVES, "x": {"ema": STATE}}, "best_ema, x.ema", "x.ema"),
}  # fmt: skip
"""A file, what is said of it, and a name in it."""


@pytest.mark.parametrize("several", SEVERAL)
@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_networks_that_differ_are_refused_until_one_is_named(several, suffix, tmp_path, caplog):
    data, message, name = SEVERAL[several]
    torch.save(data, tmp_path / "model.pt")
    assert_refused(tmp_path / "model.pt", tmp_path / "ran", re.escape(message))
    (tmp_path / f"model{suffix}").write_text(json.dumps({"network": name}))
    state = read_checkpoint(tmp_path / "model.pt")
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())


def test_the_raw_network_is_had_by_naming_it(tmp_path):
    torch.save({"model": OTHER, "ema": STATE}, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text('{"network": "model"}')
    assert torch.equal(read_checkpoint(tmp_path / "model.pt")["stem.bias"], OTHER["stem.bias"])
    (tmp_path / "model.json").write_text('{"network": "modell"}')
    assert_refused(
        tmp_path / "model.pt", tmp_path / "ran", "network='modell'.* it has ema, model; did you mean 'model'"
    )


def test_what_an_average_lacks_is_the_networks_own_and_said(tmp_path, caplog):
    fixed = {"positions": torch.ones(3), "norm.running_mean": torch.zeros(2)}
    torch.save({"model": OTHER | fixed, "ema": STATE}, tmp_path / "model.pt")
    state = read_checkpoint(tmp_path / "model.pt")
    assert set(state) == {*STATE, *fixed} and torch.equal(state["stem.bias"], STATE["stem.bias"])
    assert "the average under ema has no positions, norm.running_mean; these 2 tensors" in caplog.text


def test_a_known_tensor_shows_a_network_in_any_wrapper(tmp_path):
    state = {"acme.wrapper.thing." + name: tensor for name, tensor in STATE.items()} | {
        "acme.head.weight": torch.ones(2)
    }
    torch.save({"weights": state, "smooth": {"acme": prefixed("ema.", STATE)}}, tmp_path / "model.pt")
    found = open_checkpoint(tmp_path / "model.pt", ["stem.weight"])
    assert_is_state(found.state)


def test_arguments_in_the_file_are_kept(tmp_path):
    torch.save({"ema": STATE, "args": argparse.Namespace(model="SiT-XL/2")}, tmp_path / "model.pt")
    assert open_checkpoint(tmp_path / "model.pt").said == {"model": "SiT-XL/2"}


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


def bomb(kind):
    """Small files that would take memory or time without end."""
    if kind == "lists in lists":
        data = [STATE]
        for _ in range(40):
            data = [data, data]
        return data
    if kind == "dictionaries in dictionaries":
        data = {"ema": STATE}
        for _ in range(10_000):
            data = {"model": data}
        return data
    if kind == "a list that holds itself":
        data = [STATE]
        data.append(data)
        return data
    if kind == "a key of tuples":
        key = ()
        for _ in range(60):
            key = (key, key)
        return Raw({"ema": STATE, "x": key})
    if kind == "one number seen as many":
        return {"ema": {"stem.weight": torch.ones(1).expand(10**6, 10**7)}}
    if kind == "one storage a million times":
        big = torch.ones(10**5)
        return {"ema": {f"a{i}.weight": big for i in range(10**4)}}
    if kind == "sparse":
        return {
            "ema": {"stem.weight": torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (10**9, 10**9))}
        }
    if kind == "bytes of a number":
        return {"ema": {"stem.weight": torch.ones(2), "x": Calls(bytearray, 10**11)}}
    raise ValueError(kind)


class Raw:
    """A dictionary {tuple: 1}, whose hash is taken where it is read and not where it is written."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return OrderedDict, ([[self.data["x"], 1]],)


BOMBS = [
    "lists in lists", "dictionaries in dictionaries", "a list that holds itself", "a key of tuples",
    "one number seen as many", "one storage a million times", "sparse",
    "bytes of a number",
]  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("suffix", [".pt", ".pkl", "legacy.pt"])
def test_no_file_takes_time_or_memory_without_end(kind, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    with deep_recursion():
        if suffix == ".pkl":
            path.write_bytes(pickle.dumps(bomb(kind)))
        else:
            torch.save(bomb(kind), path, _use_new_zipfile_serialization=suffix == ".pt")
    assert_refused(path, tmp_path / "ran", "damaged|asks for|holds no tensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_storage_inside_a_pickle_is_no_way_around(zipped, tmp_path):
    content = saved(Calls(bytearray, 10**11), _use_new_zipfile_serialization=zipped)
    data = {"ema": {"stem.weight": Calls(torch.storage._load_from_bytes, content)}}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(data))
    assert_refused(tmp_path / "model.pkl", tmp_path / "ran", "damaged")


@contextlib.contextmanager
def deep_recursion():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def test_a_place_far_out_in_a_pickles_table_costs_nothing(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"\x80\x02}r\xff\xff\xff\xff.")
    assert_refused(tmp_path / "model.pkl", tmp_path / "ran", "holds no tensors")


def test_a_zip_that_unpacks_to_more_is_refused(tmp_path):
    torch.save({"ema": {"stem.weight": torch.zeros(10**7)}}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "model.pt", "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    assert_refused(tmp_path / "model.pt", tmp_path / "ran", "unpacks to 400.* bytes")


@pytest.mark.parametrize("storage", [[0, 10**12], [0, 8], [8, 0], [0, 2**63]])
@pytest.mark.parametrize("shape", [[10**9, 250], [2], [-2], [2**62, 2**62]])
def test_headers_of_safetensors_that_lie_are_refused(storage, shape, tmp_path):
    header = json.dumps({"stem.weight": {"dtype": "F32", "shape": shape, "data_offsets": storage}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert_refused(tmp_path / "model.safetensors", tmp_path / "ran", "damaged")


@pytest.mark.parametrize("length", [2**63 - 1, 10**12, 10**8])
def test_a_header_of_safetensors_cannot_be_longer_than_its_file(length, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    assert_refused(tmp_path / "model.safetensors", tmp_path / "ran", "damaged")


def laughs(first, again):
    """Nine anchors, each of which names the one before it nine times."""
    lines = (f"{b}: &{b} {again.format(', '.join([f'*{a}'] * 9))}\n" for a, b in itertools.pairwise("abcdefghij"))
    return f"a: &a {first}\n" + "".join(lines)


@pytest.mark.parametrize(
    ("suffix", "content", "match"),
    [
        (".yaml", laughs("[1, 2]", "[{}]"), "aliases"),
        (".yaml", laughs("{x: 1}", "{{<<: [{}]}}"), "aliases"),
        (".yaml", "a: " + "[" * 5000, "cannot be read"),
        (".json", '{"a": ' + "[" * 100_000, "cannot be read"),
        (".json", '{"a": "' + "x" * 400_000 + '"}', "too many"),
        (".json", '{"a": ' + "9" * 5000 + "}", "cannot be read"),
    ],
)  # fmt: skip
def test_no_sidecar_takes_time_or_memory_without_end(suffix, content, match, tmp_path):
    (tmp_path / f"model{suffix}").write_text(content)
    with pytest.raises(ValueError, match=match) as refusal:
        read_options(tmp_path / "model.pt")
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_two_sidecars_must_say_the_same(tmp_path):
    (tmp_path / "model.json").write_text('{"num_heads": 2, "image_size": 16}')
    (tmp_path / "model.yaml").write_text("image_size: 16\nnum_heads: 2\n")
    assert read_options(tmp_path / "model.pt") == {"num_heads": 2, "image_size": 16}
    (tmp_path / "model.yaml").write_text("image_size: 16\nnum_heads: 4\n")
    with pytest.raises(ValueError, match=r"model.json and .*model.yaml say different things .*\(num_heads\); keep one"):
        read_options(tmp_path / "model.pt")


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
