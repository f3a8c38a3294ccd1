"""The network, or the average of its weights, is found in whatever a file of weights holds."""

import argparse
import json
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from ddae.backbones.checkpoints import open_checkpoint, read_checkpoint
from tests.ddae.backbones import nvlabs, official
from tests.ddae.backbones.weights import OTHER, STATE, assert_is_state, assert_refused, prefixed, saved

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
    nvlabs.edm_snapshot(tmp_path / "network.pkl", state, module_src=source, sigma_data=0.5)
    read = read_checkpoint(tmp_path / "network.pkl")
    assert read.pop("sigma_data") == 0.5
    assert set(read) == set(state) and all(torch.equal(read[name], state[name]) for name in state)
    assert not (tmp_path / "ran").exists()


def test_a_training_state_of_nvlabs_is_read(tmp_path):
    network = nvlabs.nvlabs_module(prefixed("model.", STATE), "EDMPrecond")
    nvlabs.nvlabs_save(tmp_path / "state.pt", {"net": network, "optimizer_state": {"state": {}}})
    assert_is_state(read_checkpoint(tmp_path / "state.pt"))


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


@pytest.mark.parametrize(
    "data",
    [
        {"model": STATE, "teacher": OTHER},
        {"teacher_state_dict": OTHER, "model": prefixed("module.", STATE)},
        {"state_dict": prefixed("model.", STATE) | prefixed("teacher.", OTHER)},
    ],
)
def test_a_teacher_beside_the_network_is_named_and_can_be_taken(data, tmp_path, caplog):
    path = tmp_path / "model.pt"
    torch.save(data, path)
    assert_is_state(read_checkpoint(path))
    [said] = [record.getMessage() for record in caplog.records]
    named = re.search(r"taking the network under \S+; (\S*teacher\S*) has the same tensors, .* `network: \1`", said)
    path.with_suffix(".json").write_text(json.dumps({"network": named[1]}))
    assert all(torch.equal(tensor, OTHER[name]) for name, tensor in read_checkpoint(path).items())


def test_an_average_decides_between_network_and_teacher(tmp_path, caplog):
    torch.save({"model": OTHER, "teacher": OTHER, "ema": STATE}, tmp_path / "model.pt")
    assert_is_state(read_checkpoint(tmp_path / "model.pt"))
    assert not caplog.records
