"""Published numbers measured again: the whole table, and one entry of every kind, on tiny random networks in the
official formats and tiny copies of the datasets, down to the printed comparison."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from ddae.backbones import LIBRARIES, SHIPPED
from ddae.datasets.named import DATASETS as NAMED
from ddae.finetune import RECIPES
from ddae.generation.extractors import load_extractor
from ddae.generation.sampling import SAMPLERS
from ddae.heads import check_recipe, expand, find_head
from ddae.views import AUGMENTATIONS
from sweeps import cli, sampling
from sweeps.finetune import Finetune
from sweeps.probing.space import check_choices
from sweeps.reproduce import Reproduce, main
from sweeps.reproducing import runs, table
from sweeps.reproducing.entry import FineTuning, Generation, OwnScores, Probe
from sweeps.reproducing.files import DATASETS, INCEPTION, MODELS
from sweeps.reproducing.table import ENTRIES
from tests.commands import PATIENCE_SECONDS
from tests.ddae.backbones.official import adm_classifier_shapes, dit_shapes, random_state
from tests.ddae.test_datasets_named import FILES, draw, write_tiny_imagenet

CLASSES = FILES["imagenet"][:4]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/, where two datasets lie in their own layout, and models/."""
    place, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    write_tiny_imagenet(place / "data", rng)
    for wnid in FILES["tiny-imagenet"]:
        for number in range(12):
            draw(place / "data/tiny-imagenet-200/train" / wnid / "images" / f"{wnid}_{90 + number}.JPEG", wnid, False)
    for number, wnid in enumerate(CLASSES):
        for each in range(3):
            draw(place / "data/imagenet/train" / wnid / f"{wnid}_{each}.JPEG", wnid, False)
        draw(place / "data/imagenet/val" / wnid / f"ILSVRC2012_val_{number:08}.JPEG", wnid, True)
    (place / "models").mkdir()
    return place


@pytest.fixture(scope="module")
def edm(place):
    """DDPM++ with eight blocks on the way up, as pretrain.py leaves it."""
    from ddae.backbones.song_unet import SongUNet2DModel

    torch.manual_seed(0)
    SongUNet2DModel(
        sample_size=8, stem_channels=8, block_out_channels=(16, 8), layers_per_block=3, attention_resolutions=(4,),
        noise_channels=8, time_embedding_dim=32,
    ).save_pretrained(place / "models" / "edm-tiny-imagenet")  # fmt: skip


@pytest.fixture
def measured(place, monkeypatch, capsys):
    """(name, flags) -> what is printed, and results.json; in this process."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def measured(name, **flags):
        main(Reproduce(name, **flags))
        printed = capsys.readouterr().out
        [folder] = place.glob(f"out/reproduce-{name}-*")
        assert printed.startswith(f"{name}: measured ") and not (folder / "not_logged.txt").exists()
        results = json.loads((folder / "results.json").read_text())["answer"]
        assert results["entry"] == name and f"published {ENTRIES[name].published_text} (" in printed
        return printed, results

    return measured


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_well_formed(name):
    entry = ENTRIES[name]
    assert re.fullmatch(r"[a-z0-9.-]+", name) and entry.source and entry.tolerance > 0
    assert entry.published is None or 0 < entry.published < 100
    assert entry.published is not None or entry.says
    assert entry.dataset in NAMED and entry.dataset in DATASETS and entry.model in MODELS
    library, colon, _ = MODELS[entry.model].backbone.partition(":")
    assert MODELS[entry.model].files or library in (*LIBRARIES, *SHIPPED)
    assert not colon or library in LIBRARIES
    assert cli.parse(Reproduce, ["--name", name, "--views", "2"], None) == Reproduce(name, views=2)
    assert all(each.strip() == each and not each.endswith(".") for each in (*entry.differs, entry.recipe.text))
    assert_recipe(entry.recipe)


def assert_recipe(recipe):
    if isinstance(recipe, Probe):
        assert expand([recipe.head]) == (recipe.head,) and find_head(recipe.head)[0].min_grid <= recipe.pooling
        assert check_choices([recipe.pooling])[0] == (recipe.pooling,) and recipe.augment in AUGMENTATIONS
        if recipe.training:
            check_recipe(recipe.head)
            assert recipe.training.recipe.num_epochs == recipe.training.epochs and recipe.training.recipe.min_steps == 0
    elif isinstance(recipe, FineTuning):
        allowed = get_args(get_args(get_type_hints(Finetune)["augment"])[0])
        assert recipe.recipe in RECIPES and recipe.augment in allowed
        assert recipe.learning_rate in RECIPES[recipe.recipe].learning_rates
    elif isinstance(recipe, Generation):
        assert recipe.sampler in SAMPLERS and recipe.num_samples == 50_000
    else:
        assert isinstance(recipe, OwnScores)


def test_the_list_names_every_entry_and_file():
    listed = runs.list_entries()
    assert all(re.search(rf"^{re.escape(name)} ", listed, re.MULTILINE) for name in ENTRIES)
    assert all(path in listed for model in MODELS.values() for path, _ in model.files)
    assert INCEPTION[0] in listed


def test_missing_files_are_all_named_in_one_line(tmp_path):
    given = {"models": tmp_path / "models", "data_root": str(tmp_path / "data")}
    with pytest.raises(ValueError, match="ddae-tiny-edm-fid needs what is not there") as error:
        runs.set_up(Reproduce("ddae-tiny-edm-fid", **given))
    assert all(part in str(error.value) for part in ("edm-tiny-imagenet (", INCEPTION[0], "tiny-imagenet-200 ("))
    with pytest.raises(ValueError, match=r"DiT-XL-2-256x256.pt \(.*vae \(.*imagenet \("):
        runs.set_up(Reproduce("ep-dit-knn", **given))


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="name is missing"):
        runs.set_up(Reproduce())
    with pytest.raises(ValueError, match=r"'gans-liner' is no entry.*gans-linear"):
        runs.set_up(Reproduce("gans-liner"))
    with pytest.raises(ValueError, match="does not say which block and timestep"):
        runs.set_up(Reproduce("ddae-cifar10-edm-imagenet-linear"))
    with pytest.raises(ValueError, match="give --block and --timestep"):
        runs.set_up(Reproduce("ddae-cifar10-edm-imagenet-finetune", block="out_6"))
    with pytest.raises(ValueError, match="views=3 and fresh_augmentation=True"):
        runs.set_up(Reproduce("gans-linear", views=3, fresh_augmentation=True))
    with pytest.raises(ValueError, match="reads no block"):
        runs.set_up(Reproduce("gans-fid", block="b24"))
    with pytest.raises(ValueError, match="views=-1 must be 0 or more"):
        runs.set_up(Reproduce("gans-linear", views=-1))


def test_a_linear_probe_as_a_user_gives_it(fork, edm, place):
    """With workers that extract."""
    asked = ["--name", "ddae-tiny-edm-linear", "--views", "2"]
    out, err = (process := fork("reproduce", *asked, cwd=place)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    assert re.match(
        r"ddae-tiny-edm-linear: measured \d+\.\d \+- \d+\.\d %, published 50 % \(DDAE, Tables 2 and 4\)", out
    )
    assert "feature  up.1.2 at timestep 14 (sigma 0.207), pooled to 1x1, under ddae" in out
    assert "differs: 2 stored views of each image are seen in turn, in 30 epochs" in out
    assert "adam at 0.004, batches of 512, 30 epochs, cosine; augmented by flip+crop" in out
    [folder] = place.glob("out/reproduce-ddae-tiny-edm-linear-*")
    results = json.loads((folder / "results.json").read_text())["answer"]
    assert results["difference"] == pytest.approx(results["measured"] - 50) and results["num_train"] == 45
    assert (place / "mlflow.db").exists() and not (folder / "not_logged.txt").exists()


def test_the_cost_of_fresh_augmentation_is_said(edm, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    main(Reproduce("ddae-tiny-edm-linear", dry_run=True))
    stored = capsys.readouterr().out
    assert "10 stored for 30 epochs; --fresh-augmentation stores 30, 3.0 times the passes" in stored
    main(Reproduce("ddae-tiny-edm-linear", dry_run=True, fresh_augmentation=True))
    fresh = capsys.readouterr().out
    assert "30 stored for 30 epochs" in fresh and "seen in turn" not in fresh
    images = [int(re.search(r"passes +([\d,]+) images", text)[1].replace(",", "")) for text in (stored, fresh)]
    assert images[1] - images[0] == 20 * 45


def test_a_fine_tuned_network(measured, edm, monkeypatch):
    entry = ENTRIES["ddae-tiny-edm-finetune"]
    monkeypatch.setitem(table.ENTRIES, entry.name, replace(entry, recipe=replace(entry.recipe, epochs=4)))
    costs = runs.set_up(Reproduce(entry.name)).estimate()
    assert "parameters" in costs and "views     fresh in every epoch" in costs
    printed, results = measured(entry.name)
    assert "cut after up.1.2, told timestep 14, under linear" in printed
    assert "differs: gradients are clipped to a norm of 1" in printed
    assert 0 <= results["measured"] <= 100 and results["num_train"] == 45


def test_samples(measured, edm, place, monkeypatch):
    """Under a tiny network in Inception's place, whose 2,048 features take a matrix root of 20 seconds."""
    tiny = replace(load_extractor("timm:test_vit@random"), distance="FID")
    monkeypatch.setattr(sampling, "load_extractor", lambda name, device: replace(tiny, name=name))
    (place / "models" / INCEPTION[0]).write_bytes(b"")
    costs = runs.set_up(Reproduce("ddae-tiny-edm-fid", num_samples=6, dry_run=True)).estimate()
    assert "35 passes each: 210 passes" in costs
    printed, results = measured("ddae-tiny-edm-fid", num_samples=6)
    assert re.match(r"ddae-tiny-edm-fid: measured [\d.,]+, published 19.5 \(DDAE, Table 2\)", printed)
    assert "differs: 6 samples and not 50,000" in printed and results["num_train"] == 48
    assert results["measure"] == "FID" and results["stderr"] is None


def test_a_network_to_compare_with(measured, place):
    """The classifier of guided diffusion, by its own scores."""
    file = place / "models" / "256x256_classifier.pt"
    torch.save(random_state(adm_classifier_shapes(num_classes=len(CLASSES))), file)
    file.with_suffix(".json").write_text(json.dumps({"image_size": 16, "num_head_channels": 32, "num_res_blocks": 1}))
    printed, results = measured("gans-unet-encoder")
    assert measured("gans-unet-encoder")[0] == printed  # it is done already
    assert "published 64.32 % (GANs, Table 1)" in printed and "after no training image" in printed
    assert results["num_test"] == len(CLASSES) and results["feature"].startswith("scores at")


def test_attention_on_tokens(measured, place):
    """Efficient probing of a DiT of 28 blocks on the latents of a VAE."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        sample_size=256, block_out_channels=(4, 4, 8, 8), latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(place / "models" / "vae")  # fmt: skip
    file = place / "models" / "DiT-XL-2-256x256.pt"
    torch.save(random_state(dit_shapes(depth=28, input_size=32)), file)
    file.with_suffix(".json").write_text(json.dumps({"num_heads": 2}))
    printed, results = measured("ep-dit-efficient", views=1)
    assert "published 57 % (EP's benchmark, row DiT-XL/2)" in printed
    assert "block.27 at timestep 0" in printed and "under efficient-128" in printed
    assert "lars at 1.6, batches of 4,096, 90 epochs, cosine, 10 epochs of warm-up" in printed
    assert "differs: latents are the mean" in printed and Path(place / "out" / "store").is_dir()
    assert results["num_test"] == len(CLASSES)


def test_the_page_has_the_list():
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
    assert runs.list_entries() in page
