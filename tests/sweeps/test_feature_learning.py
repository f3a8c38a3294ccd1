"""The command that trains small networks on planted signals and on images: its page, going on, and what it refuses."""

import csv
import json
import re
import signal

import numpy as np
import pytest
from PIL import Image

from tests.commands import PATIENCE_SECONDS, wait_for

TINY = ["--num-samples", "4", "8", "--signal-norms", "2", "6", "--dimension", "60", "--num-filters", "4"]
TINY += ["--init-std", "0.01", "--steps", "600", "--seeds", "1"]
IMAGES = ["--dataset", "digits", "--classes", "0", "1", "--num-images", "10", "--image-snrs", "0.5", "20"]


def run(fork, *args, cwd):
    out, err = (process := fork("feature_learning", *args, cwd=cwd)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    return out


def refused(fork, *args, cwd) -> str:
    _, err = (process := fork("feature_learning", *args, cwd=cwd)).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2 and "Traceback" not in err, err
    return err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def place(fork, tmp_path_factory):
    place = tmp_path_factory.mktemp("learning")
    cost = run(fork, *TINY, *IMAGES, "--dry-run", cwd=place)
    assert "16 trainings of 600 steps" in cost and "8 trainings" in cost and "0.27 to 4.80" in cost
    assert not list(place.glob("out/feature-learning-*"))
    run(fork, *TINY, *IMAGES, cwd=place)
    return place


@pytest.fixture(scope="module")
def folder(place):
    [folder] = place.glob("out/feature-learning-*")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "results.json").read_text())


def test_every_training_has_its_line(folder, found):
    rows, images = (list(csv.DictReader((folder / name).open())) for name in ("trials.csv", "images.csv"))
    assert len(rows) == 4 * 2 * 2 and len(images) == 4 * 2
    for row in rows:
        balance, ratio = float(row["balance"]), float(row["ratio"])
        assert balance == pytest.approx(min(ratio, 1 / ratio), rel=1e-3)
    by_objective = [float(row["balance"]) for row in rows if row["objective"] == "classifier"]
    assert found["summaries"]["classifier"]["balance"]["mean"] == pytest.approx(np.mean(by_objective), rel=1e-4)
    assert {"own_noise_accuracy", "gain_own_noise", "probe_accuracy"} <= images[0].keys()


def test_the_report_sets_theory_beside_what_was_found(folder):
    report, page = (folder / "report.txt").read_text(), (folder / "report.html").read_text()
    for words in ("p in dx/dt ~ x^p", "0.5 (n SNR^2)^1", "noised-classifier", "accuracy, noise patch redrawn"):
        assert words in report
    assert page.count("<section") == 6 and page.count("<svg") == 5
    pictures = {path.name: np.asarray(Image.open(path).convert("L")) for path in (folder / "figures").iterdir()}
    assert pictures.keys() == {"courses.png", "others.png", "ratio.png", "loss.png", "images.png"}
    assert all(pixels.std() > 10 for pixels in pictures.values())
    assert not (folder / "not_logged.txt").exists() and not (folder / "not_drawn.txt").exists()


def test_the_same_command_says_the_same(fork, place, folder):
    assert run(fork, *TINY, *IMAGES, cwd=place).strip() == (folder / "report.txt").read_text().strip()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_finds_the_same(fork, found, tmp_path):
    process = fork("feature_learning", *TINY, "--no-images", cwd=tmp_path)
    ledger = tmp_path / "out" / "store" / "ledger"
    assert wait_for(lambda: len(list(ledger.rglob("*.json"))) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("out/feature-learning-*/results.json"))
    kept = {path: path.stat().st_mtime_ns for path in ledger.rglob("*.json")}
    run(fork, *TINY, "--no-images", cwd=tmp_path)
    [results] = tmp_path.glob("out/feature-learning-*/results.json")
    again = json.loads(results.read_text())
    assert again["trials"] == found["trials"] and again["images"] == []
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
def test_a_training_that_diverges_is_recorded_and_the_sweep_goes_on(fork, tmp_path):
    flags = ["--objectives", "autoencoder", "diffusion", "--seeds", "2", "--autoencoder-rate", "10", "--no-images"]
    out = run(fork, *TINY, *flags, cwd=tmp_path)
    assert re.search(r"diverged +0 +8|diverged +8 +0", out)
    [table] = tmp_path.glob("out/feature-learning-*/trials.csv")
    rows = list(csv.DictReader(table.open()))
    assert sorted(row["ended"] for row in rows if row["objective"] == "autoencoder") == ["diverged"] * 8
    assert all(float(row["balance"]) > 0 for row in rows if row["objective"] == "diffusion")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--num-samples", "1"], "num_samples=1 must be even and 2 or more"),
        (["--num-samples", "9"], "num_samples=9 must be even and 2 or more"),
        (["--signal-norms", "0"], "signal_norms=[0.0] must be above 0"),
        (["--noise-std", "-1"], "noise_std=-1 must be above 0"),
        (["--diffusion-rate", "0"], "diffusion_rate=0.0 must be 1e-06 or more"),
        (["--classifier-rate", "1000"], "classifier_rate=1000.0 must be 1e-06 or more, and 100 at most"),
        (["--steps", "1"], "steps=1 must be 10 or more"),
        (["--dimension", "2"], "dimension=2 must be 3 or more"),
        (["--classes", "0", "0"], "--classes 0 0 must name two classes"),
        (["--classes", "0", "ten"], "class 'ten' is not in dataset='digits', which has 0, 1"),
        (["--num-images", "300"], "--classes 0 1 have 114 train and 28 val images each"),
        (["--image-snrs", "0"], "image_snrs=[0.0] must be above 0"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(tmp_path, flags, line):
    from sweeps.cli import parse
    from sweeps.dynamics.sweep import set_up
    from sweeps.feature_learning import FeatureLearning

    with pytest.raises(ValueError) as mistake:
        set_up(parse(FeatureLearning, [*IMAGES, *flags], None))
    assert line in str(mistake.value) and "\n" not in str(mistake.value)


def test_a_set_of_one_class_is_one_line(fork, tmp_path):
    (tmp_path / "one" / "only").mkdir(parents=True)
    for number in range(20):
        Image.fromarray(np.full((8, 8), 9 * number, dtype=np.uint8)).save(tmp_path / "one" / "only" / f"{number}.png")
    assert "has 1 class (only)" in refused(fork, *TINY, "--dataset", "one", "--classes", "only", "only", cwd=tmp_path)
