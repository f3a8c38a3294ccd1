"""Files and folders that are something else than a network are refused by what they are, and with what can help."""

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddae.backbones import load_backbone
from tests.ddae.backbones.official import adm_shapes, random_state
from tests.ddae.backbones.weights import STATE, saved

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def packed(kind: str) -> bytes:
    """An archive of a model's folder, or of arrays."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("unet/config.json", "{}")
    elif kind == "npz":
        np.savez(file, a=np.ones(3))
    else:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("unet"))
    return gzip.compress(file.getvalue()) if kind == "gz" else file.getvalue()


CONTENTS = {
    "pointer": (POINTER, "Git LFS.*git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html>Virus scan warning</html>", "a web page in place"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(99), "a GGUF file; give the diffusers folder"),
    "json": (b'{"_class_name": "UNet2DModel"}', "is JSON, not weights"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "zip": (packed("zip"), "an archive; unpack it"),
    "tar": (packed("tar"), "an archive; unpack it"),
    "tar.gz": (packed("gz"), "an archive; unpack it"),
    "npz": (packed("npz"), "an archive of NumPy; save the state_dict"),
    "empty": (b"", "damaged|is empty"),
}


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".safetensors", ""])
@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(kind, suffix, tmp_path):
    content, said = CONTENTS[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as refusal:
        load_backbone(str(path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", f"unet/{WEIGHTS}"]
)
@pytest.mark.parametrize("kind", ["pointer", "web page"])
def test_so_is_every_file_of_a_folder(kind, file, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_bytes(CONTENTS[kind][0])
    with pytest.raises(ValueError, match=CONTENTS[kind][1]) as refusal:
        load_backbone(str(tmp_path))
    assert str(tmp_path / file) in str(refusal.value)


def test_formats_under_the_names_of_others(tmp_path):
    save_file(STATE, tmp_path / "model.pt")
    (tmp_path / "model.safetensors").write_bytes(saved(STATE))
    for path, said in (
        (tmp_path / "model.pt", r"call it \.safetensors"),
        (tmp_path / "model.safetensors", r"model\.pt"),
    ):
        with pytest.raises(ValueError, match=said):
            load_backbone(str(path))


def changed(folder: Path, change, suffix: str) -> str:
    """The folder with its weights changed, in one of the two formats."""
    state = {name: change(tensor) for name, tensor in load_file(folder / "unet" / WEIGHTS).items()}
    if suffix == ".bin":
        (folder / "unet" / WEIGHTS).unlink()
        torch.save(state, folder / "unet" / "diffusion_pytorch_model.bin")
    else:
        save_file(state, folder / "unet" / WEIGHTS, {"format": "pt"})
    return str(folder)


NO_NUMBERS = {
    "int8": (lambda tensor: (tensor * 100).to(torch.int8), "quantised"),
    "uint8": (lambda tensor: (tensor * 100).to(torch.uint8), "quantised"),
    "bool": (lambda tensor: tensor > 0, "quantised"),
    "zero": (torch.zeros_like, "every weight of the UNet2DModel is zero"),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_weights_that_are_no_numbers(suffix, kind, tiny_model, tmp_path):
    change, said = NO_NUMBERS[kind]
    if suffix == ".pt":
        torch.save({name: change(tensor) for name, tensor in random_state(adm_shapes()).items()}, tmp_path / "model.pt")
        (tmp_path / "model.json").write_text('{"image_size": 16, "num_head_channels": 32}')
        name = str(tmp_path / "model.pt")
    else:
        shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
        name = changed(tmp_path, change, suffix)
    with pytest.raises(ValueError, match=said):
        load_backbone(name)


@pytest.mark.parametrize("extra", ["conv_in.weight_scale", "conv_in.weight.absmax", "conv_in.SCB", "scaled_fp8"])
def test_scales_beside_weights_show_that_these_are_quantised(extra, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "unet" / WEIGHTS
    save_file(load_file(path) | {extra: torch.ones(1)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"is quantised, as its tensor {extra}"):
        load_backbone(str(tmp_path))


def test_a_folder_that_says_it_is_quantised(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "unet/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unet is quantised \(bitsandbytes\)"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    "key", ["unet.down.to_q.lora_A.weight", "lora_unet_down_to_q.lora_down.weight", "base_model.model.q.lora_B.weight"]
)
def test_a_lora_is_called_one(key, tmp_path):
    save_file({key: torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    for name in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(ValueError, match=r"is (or holds )?a LoRA, .*fuse_lora"):
            load_backbone(str(name))


def test_what_beside_a_network_would_change_it_is_said_not_to(tiny_model, tmp_path, caplog):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "unet", tmp_path / "unet_ema")
    save_file({"unet.q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "pytorch_lora_weights.safetensors")
    load_backbone(str(tmp_path))
    assert "unet_ema is not read" in caplog.text
    assert "pytorch_lora_weights.safetensors is not applied" in caplog.text


def test_a_folder_in_a_pipeline_is_not_taken_for_the_pipeline(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "unet", tmp_path / "unet_ema")
    changed_weights = tmp_path / "unet_ema" / WEIGHTS
    save_file({n: 2 * t for n, t in load_file(changed_weights).items()}, changed_weights, {"format": "pt"})
    raw, average = (load_backbone(str(tmp_path / name)).network for name in ("unet", "unet_ema"))
    torch.testing.assert_close(average.conv_in.weight, 2 * raw.conv_in.weight)
    shutil.copytree(tmp_path / "unet", tmp_path / "checkpoint-500/unet")
    with pytest.raises(ValueError, match=r"give .*checkpoint-500/unet, which it holds"):
        load_backbone(str(tmp_path / "checkpoint-500"))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["checkpoint-5/unet/config.json", "checkpoint-5/unet_ema/config.json"], ""),
        (
            ["unet/config.json", "unet_ema/config.json", "optimizer.bin"],
            r"unet or .*unet_ema.*\(unet_ema is the average\)",
        ),
        (["snapshots/a1/model_index.json", "refs/main"], "give .*snapshots/a1, which it holds"),
        (["model.ckpt", "optimizer.pt"], r"holds model\.ckpt: give the path of the file"),
        (["pytorch_model.bin", "random_states_0.pkl"], r"pytorch_model\.bin: put the config.json"),
        ([], "it is empty"),
    ],
)
def test_folders_of_trainings_and_downloads(files, said, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(saved(STATE))
    with pytest.raises(ValueError, match=rf"is not a diffusers folder.*{said}"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "library"),
    [({"model_type": "vit", "architectures": ["ViTModel"]}, "transformers"), ({"pretrained_cfg": {}}, "timm")],
)
def test_folders_of_other_libraries(config, library, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"give it as {library}:{tmp_path}"):
        load_backbone(str(tmp_path))


def test_options_that_diffusers_does_not_know_are_named(tiny_model, tmp_path, caplog):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "unet/config.json").read_text())
    (tmp_path / "unet/config.json").write_text(json.dumps(config | {"qk_norm_of_ours": True}))
    load_backbone(str(tmp_path))
    assert "qk_norm_of_ours=True, which UNet2DModel does not know" in caplog.text


def test_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"is a link to .*gone, which is not there"):
        load_backbone(str(tmp_path / "link"))


def test_names_without_numbers(tmp_path):
    torch.save({"module": {name: torch.empty(0) for name in random_state(adm_shapes())}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="files of other processes"):
        load_backbone(str(tmp_path / "model.pt"))


def test_an_average_in_a_file_of_its_own_is_named(tmp_path, caplog):
    for name in ("model010000.pt", "ema_0.9999_010000.pt"):
        torch.save(random_state(adm_shapes()), tmp_path / name)
    (tmp_path / "model010000.json").write_text('{"image_size": 16, "num_head_channels": 32}')
    load_backbone(str(tmp_path / "model010000.pt"))
    assert "ema_0.9999_010000.pt beside it" in caplog.text


def test_averages_of_callbacks_and_beside_a_network_of_a_shorter_name(tmp_path):
    raw = random_state(adm_shapes())
    average = {name: 2 * tensor for name, tensor in raw.items()}

    def under(prefix, state):
        return {prefix + name: tensor for name, tensor in state.items()}

    files = (
        {"state_dict": under("net.", raw), "callbacks": {"EMA": {"ema_state_dict": under("net.", average)}}},
        {"state_dict": under("model.", raw) | under("model_ema.", {n.replace(".", ""): t for n, t in average.items()})},
        {"state_dict": under("net.", raw) | under("net_ema.", average)},
    )
    for number, data in enumerate(files):
        torch.save(data, tmp_path / f"{number}.pt")
        (tmp_path / f"{number}.json").write_text('{"image_size": 16, "num_head_channels": 32}')
        network = load_backbone(str(tmp_path / f"{number}.pt")).network
        torch.testing.assert_close(network.conv_in.weight, average["input_blocks.0.0.weight"])


def test_a_model_that_was_moved(tmp_path):
    with pytest.raises(ValueError, match=f"if it was moved, put a link to it there: ln -s THERE {tmp_path}/gone"):
        load_backbone(str(tmp_path / "gone"))
