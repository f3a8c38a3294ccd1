"""Fusion as a user gives it, on a random network and scikit-learn's digits."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import ddae
from ddae.datasets import load_dataset
from ddae.winner import Winner
from sweeps.fuse import Fuse
from sweeps.fusing.sweep import check_heads, set_up
from tests.commands import PATIENCE_SECONDS

SMALL = ["--timesteps", "0", "100", "--blocks", "mid", "up.1.0", "--poolings", "1", "2", "--heads", "linear"]
FEW = ["--heads", "joint-ridge", "average-8", "--num-trials", "6", "--max-blocks", "3"]


def run(fork, command, *args, cwd):
    out, err = (process := fork(command, *args, cwd=cwd)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out


def refused(fork, *args, cwd) -> str:
    _, err = (process := fork("fuse", *args, cwd=cwd)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2 and "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def place(fork, tiny_model, tmp_path_factory):
    """Where a sweep has ended, and its features have been fused."""
    place = tmp_path_factory.mktemp("fuse")
    sweep = run(fork, "layer_noise", "--backbone", tiny_model, "--dataset", "digits", *SMALL, cwd=place)
    assert "test it, once" in sweep
    costs = run(fork, "fuse", *FEW, "--dry-run", "--memory", "900MB", cwd=place)
    assert not list(place.glob("out/fuse-*")) and "forward passes" in costs and "of 900 MB" in costs
    run(fork, "fuse", *FEW, cwd=place)
    return place


@pytest.fixture(scope="module")
def folder(place):
    [folder] = place.glob("out/fuse-*")
    return folder


def test_the_answer_is_a_set_that_gains_more_than_its_standard_error_or_the_sweeps_own(folder):
    found = json.loads((folder / "results.json").read_text())
    single, *sets = found["best"]
    assert single["gain"] == 0 and re.fullmatch(r"(mid|up\.1\.0)@(0|100)", single["cell"]["fused"])
    under = [(len(re.findall("@", each["cell"]["fused"])), each["cell"]["head"]) for each in sets]
    assert under and len(set(under)) == len(under) and {num for num, _ in under} <= {1, 2}
    for each in sets:
        assert each["gain"] == pytest.approx(each["val_accuracy"] - single["val_accuracy"])
    assert found["answer"] in found["best"]
    assert found["pays"] == (found["answer"] != single)
    if found["pays"]:
        assert found["answer"]["gain"] > 0
    else:
        assert all(each["gain"] <= each["stderr"] for each in sets)
        assert "does not pay" in (folder / "report.txt").read_text()
    first, both = found["paths"]
    assert {each["timestep"] for each in first["joined"]} in ({0}, {100})
    assert len(both["joined"]) == 3 and both["joined"][0]["gain"] == both["joined"][0]["accuracy"]


def test_a_page_a_table_and_pictures_are_made(folder):
    page = (folder / "report.html").read_text()
    assert "What does another pass buy?" in page and "Which features add something?" in page
    assert {path.name for path in (folder / "figures").iterdir()} == {"passes.png", "joined.png"}
    assert len((folder / "trials.csv").read_text().splitlines()) == 7
    assert not (folder / "not_logged.txt").exists() and not (folder / "not_drawn.txt").exists()


def test_the_same_command_says_the_same(fork, folder, place):
    assert run(fork, "fuse", *FEW, cwd=place).strip() == (folder / "report.txt").read_text().strip()


@pytest.mark.slow
def test_a_sweep_goes_on_to_fuse(fork, tiny_model, tmp_path):
    """With what the sweep was given; both may be asked for again."""
    asked = ["--backbone", tiny_model, "--dataset", "digits", *SMALL, "--num-trials", "3", "--memory", "1GB", "--fuse"]
    assert "fuse.py --dry-run" in run(fork, "layer_noise", *asked, "--dry-run", cwd=tmp_path)
    said = run(fork, "layer_noise", *asked, cwd=tmp_path)
    assert {path.name[:5] for path in tmp_path.glob("out/*-*")} == {"layer", "fuse-"}
    assert "--sweep out/layer-noise" in said and "--sweep out/fuse" in said
    assert run(fork, "layer_noise", *asked, cwd=tmp_path) == said


def test_it_is_tested_and_handed_over(fork, folder, place):
    assert "on 359 images" in run(fork, "final_test", cwd=place)
    assert "ddae.load" in run(fork, "hand_over", cwd=place)
    winner, digits = ddae.load(folder), load_dataset("digits", 16)
    images = digits.images.read(digits.splits["test"]).permute(0, 2, 3, 1).numpy()
    record = json.loads((folder / "final_test.json").read_text())
    right = (winner.predict(images) == digits.labels("test")).mean()
    assert right == pytest.approx(record["test_accuracy"], abs=0.05)  # other noise


def test_a_set_is_what_its_features_are_side_by_side(tiny_model):
    digits = load_dataset("digits", 16)
    images = digits.images.read(digits.splits["train"][:60]).permute(0, 2, 3, 1).numpy()
    labels = digits.labels("train")[:60]
    fused = Winner(tiny_model, "mid+up.1.0@100,mid@0", pooling=2, head="joint-ridge")
    alone = [Winner(tiny_model, b, t, 2).transform(images) for b, t in (("mid", 100), ("up.1.0", 100), ("mid", 0))]
    np.testing.assert_allclose(fused.transform(images), np.concatenate(alone, 1), atol=1e-3)
    assert (fused.fit(images, labels).predict(images) == labels).mean() > 0.9


def test_a_fused_head_is_saved_and_loaded(tiny_model, tmp_path):
    digits = load_dataset("digits", 16)
    images = digits.images.read(digits.splits["train"][:60]).permute(0, 2, 3, 1).numpy()
    for head in ("average-8", "attentive-2", "stacked"):
        fused = Winner(tiny_model, "mid+up.1.0@100", pooling=2, head=head).fit(images, digits.labels("train")[:60])
        fused.save(tmp_path / head)
        np.testing.assert_allclose(ddae.load(tmp_path / head).predict_proba(images), fused.predict_proba(images), 1e-4)


def test_what_cannot_be_fused_is_one_line(fork, place, folder, tmp_path):
    assert "head='joined' is not known" in refused(fork, "--heads", "joined", cwd=place)
    assert "max_blocks=1 must be 2 or more" in refused(fork, "--max-blocks", "1", cwd=place)
    assert "is a sweep of fuse" in refused(fork, "--sweep", str(folder), cwd=place)
    assert "no finished sweep" in refused(fork, cwd=tmp_path)


@pytest.mark.slow
def test_one_feature_alone_is_not_fused(fork, tiny_model, tmp_path):
    one = ["--timesteps", "0", "--blocks", "mid", "--poolings", "2", "--heads", "linear", "--num-trials", "1"]
    run(fork, "layer_noise", "--backbone", tiny_model, "--dataset", "digits", *one, cwd=tmp_path)
    assert "there is nothing to fuse" in refused(fork, cwd=tmp_path)
    asked = ["--backbone", tiny_model, "--dataset", "digits", *one, "--fuse", "--out", "other"]
    _, err = fork("layer_noise", *asked, cwd=tmp_path).communicate(timeout=PATIENCE_SECONDS)
    assert "fuse=True wants several blocks or timesteps" in err and not (tmp_path / "other").exists()


def test_more_passes_have_to_pay_for_themselves(place, monkeypatch):
    """Of two sets that are equally good the one of fewer passes is the answer."""
    from sweeps.fusing import findings

    monkeypatch.chdir(place)
    [sweep] = place.glob("out/layer-noise-*")
    task = set_up(Fuse(sweep=sweep, heads=("joint-ridge",))).task(((("mid", 0), ("up.1.0", 0)),))
    labels = task.labels["val"]

    def fused(num_right: int, passes: float):
        trial = type("T", (), {"last": type("R", (), {"correct": np.arange(len(labels)) < num_right})})
        return findings.Fused(None, trial, passes, 1, 0.0, 0.0)

    single, same, better = fused(200, 0.5), fused(200, 1), fused(230, 2)
    assert findings.choose(task, [single, same]) is single
    assert findings.choose(task, [single, same, better]) is better
    assert findings.choose(task, [single, better, replace(better, passes=3)]) is better
    assert findings.choose(task, [single, better, cheaper := replace(better, passes=1)]) is cheaper
    best = replace(fused(231, 2), gain=0.1)
    assert findings.choose(task, [single, better, best]) is best


def test_a_set_has_one_name_whatever_the_order_in_which_its_features_joined(place, monkeypatch):
    from sweeps.fusing.selection import Joining, Path, sets_of

    monkeypatch.chdir(place)
    [sweep] = place.glob("out/layer-noise-*")
    setup = set_up(Fuse(sweep=sweep, heads=("joint-ridge",)))
    order = [("up.1.0", 100), ("mid", 0), ("up.1.0", 0), ("mid", 100)]
    paths = [Path(2, tuple(Joining(*each, 0.5, 0.1, 0.1) for each in joined), 4) for joined in (order, order[::-1])]
    sets = sets_of(setup.probing, paths, 2)
    task = setup.task(sets)
    assert sorted(map(len, sets)) == [2, 2, 3, 3, 4]
    assert {cell.members for cell in task.cells} == set(sets)
    assert all(len(members) > 1 for members in sets_of(setup.probing, [Path(1, paths[0].joined[:1], 1)], 2))


def test_views_and_grids_that_a_head_cannot_have_are_refused(place, monkeypatch):
    monkeypatch.chdir(place)
    [sweep] = place.glob("out/layer-noise-*")
    task = set_up(Fuse(sweep=sweep)).probing
    with pytest.raises(ValueError, match="'attentive-8' wants a pooling of 2 or more, and the sweep has 1"):
        check_heads(Fuse(heads=("attentive",)), replace(task, space=replace(task.space, poolings=(1,))))
    with pytest.raises(ValueError, match="head='stacked' leaves out each image once, and the sweep has views=2"):
        check_heads(Fuse(heads=("stacked",)), replace(task, views=2))
