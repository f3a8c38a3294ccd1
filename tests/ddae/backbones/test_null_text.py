"""Folders of pipelines without their text encoders, and folders of networks alone."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from ddae.backbones import load_backbone
from tests.ddae.backbones.every_class import FOLDERS, PIPELINES, SOMETIMES, classes
from tests.ddae.backbones.test_every_class import REFUSED, settings_of

NOT_PLAIN = re.compile(r"\w(Error|Exception)\b|NoneType|object|argument|mat1|tensor|unpack|expected|\bNone\b|`|\n")
"""What only one who knows the code of a library can read."""

NOTE = "its text is zeros, which it was not trained with"

TEXT = "text_encoder", "tokenizer", "processor"

TAKES_NO_ZEROS = "BriaFiboPipeline"
"""Takes no embeddings in place of a prompt."""

NOT_ALONE = {
    "StableDiffusionDepth2ImgPipeline": "decodes 5 channels",
    "StableDiffusionXLInpaintPipeline": "decodes 9 channels",
    "StableDiffusionXLInstructPix2PixPipeline": "decodes 8 channels",
    "FluxFillPipeline": "decodes 12 channels",
    "StableDiffusionUpscalePipeline": "does not run it alone",
    "StableUnCLIPImg2ImgPipeline": "does not run it alone",
    "DiTPipeline as published": "does not run it alone",
    "BriaFiboPipeline": "does not run it alone",
    "IFSuperResolutionPipeline": "needs its VAE",
    "PRXPixelPipeline": "needs its VAE",
}
"""Networks whose class does not say what their pipeline gives them."""

ENCODERS = {
    name: [part for part, made in tiny.components.items() if "text_encoder" in part and made]
    for name, tiny in PIPELINES.items()
}
SEVERAL = {name: parts for name, parts in ENCODERS.items() if len(parts) > 1}


def without_text(folder: Path) -> bool:
    """Takes tokenizers and text encoders out of a folder; whether there were any."""
    index = json.loads((folder / "model_index.json").read_text())
    texts = [name for name in index if any(word in name for word in TEXT) and (folder / name).is_dir()]
    for name in texts:
        shutil.rmtree(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index | {name: [None, None] for name in texts}))
    return bool(texts)


def alone(folder: Path) -> Path:
    """Leaves the network, its VAE and its scheduler; the network's folder."""
    network = next(folder / part for part in ("transformer", "unet", "decoder", "prior") if (folder / part).is_dir())
    (folder / "model_index.json").unlink()
    for path in folder.iterdir():
        if path.name not in (network.name, "vae", "movq", "vqvae", "scheduler"):
            shutil.rmtree(path)
    return network


def widths(backbone) -> dict[str, list[tuple[int, int]]]:
    """(axes, width) of the numbers that a network is given."""
    given = backbone.inputs(torch.zeros(1, *backbone.encoder.shape), backbone.schedule.defaults[-1])
    leaves = {name: value if isinstance(value, list | tuple) else [value] for name, value in given.items()}
    return {
        name: [(leaf.ndim, *leaf.shape[-1:]) for leaf in values]
        for name, values in leaves.items()
        if "mask" not in name and all(torch.is_tensor(leaf) and leaf.is_floating_point() for leaf in values)
    }


@pytest.mark.parametrize("name", classes(always=SOMETIMES))
def test_a_folder_without_its_text_encoders_gets_zeros_or_is_refused_plainly(name, tmp_path, caplog):
    FOLDERS[name](tmp_path / "model")
    if name in {TAKES_NO_ZEROS, *REFUSED}:
        without_text(tmp_path / "model")
        with pytest.raises(ValueError) as refusal:
            load_backbone(str(tmp_path / "model"), settings_of(name))
        assert not NOT_PLAIN.search(str(refusal.value)), refusal.value
        return
    expected = widths(load_backbone(str(tmp_path / "model"), settings_of(name)))
    caplog.clear()
    had_text = without_text(tmp_path / "model")
    assert widths(load_backbone(str(tmp_path / "model"), settings_of(name))) == expected
    assert NOTE in caplog.text or not had_text


@pytest.mark.parametrize("name", classes())
def test_a_network_alone_is_run_with_a_note_or_refused_plainly(name, tmp_path, caplog):
    FOLDERS[name](tmp_path / "model")
    had_text = any((tmp_path / "model").glob("text_encoder*"))
    network = alone(tmp_path / "model")
    if name in NOT_ALONE or name in REFUSED:
        with pytest.raises(ValueError, match=NOT_ALONE.get(name)) as refusal:
            load_backbone(str(network), settings_of(name))
        assert not NOT_PLAIN.search(str(refusal.value)), refusal.value
    else:
        load_backbone(str(network), settings_of(name))
        assert NOTE in caplog.text or not had_text


@pytest.mark.parametrize("name", [name for name in SEVERAL if name not in REFUSED])
def test_one_text_encoder_of_several_is_named_if_it_is_missing(name, tmp_path, caplog):
    FOLDERS[name](tmp_path / "model")
    for encoder in SEVERAL[name]:
        (tmp_path / "model" / encoder).rename(tmp_path / encoder)
        try:
            load_backbone(str(tmp_path / "model"), settings_of(name))
        except ValueError as refusal:
            assert f"needs {encoder}/, which {tmp_path / 'model'} lacks" in str(refusal)
        else:
            assert f"has no {encoder}/; its text is what" in caplog.text
        (tmp_path / encoder).rename(tmp_path / "model" / encoder)


def test_the_refiner_alone_is_told_a_score_and_no_second_size(tmp_path):
    name = "StableDiffusionXLImg2ImgPipeline refiner"
    FOLDERS[name](tmp_path / "model")
    expected, ids = load_backbone(str(tmp_path / "model"), settings_of(name)), []
    for backbone in (expected, load_backbone(str(alone(tmp_path / "model")), settings_of(name))):
        given = backbone.inputs(torch.zeros(1, *backbone.encoder.shape), 500)
        ids.append(given["added_cond_kwargs"]["time_ids"])
    assert torch.equal(*ids) and ids[0].shape == (1, 5)
