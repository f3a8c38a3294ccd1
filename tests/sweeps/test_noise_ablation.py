"""The ablation of the noise of pre-training: trained for a few steps, searched and sampled in real Ray workers."""

import csv
import json
from dataclasses import replace

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection

from ddae.noise_ablation import nearest_timesteps, schedule_facts
from ddae.pretraining.frameworks import FRAMEWORKS, Levels
from sweeps import cli
from sweeps.ablation.findings import Findings
from sweeps.ablation.sweep import CONFIGURATIONS, set_up
from sweeps.noise_ablation import NoiseAblation
from sweeps.pretrain import Pretrain
from sweeps.sampling import JUDGE
from sweeps.search.halving import HalvingSearch
from sweeps.search.study import write_study
from sweeps.search.task import Result, Trial
from tests.commands import PATIENCE_SECONDS

MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
ARGS = [
    "--dataset", "digits", "--steps", "4", "--num-snapshots", "2", "--channels", "8", "16", "--num-images", "60",
    "--num-val", "60", "--num-seeds", "2", "--num-samples", "130", "--sampling-steps", "2", "--sigmas", "0.1", "0.4",
    "--extractor", str(JUDGE),
]  # fmt: skip
SMALL = NoiseAblation(
    dataset="digits", steps=4, num_snapshots=2, channels=(8, 16), num_samples=130, extractor=str(JUDGE)
)


def schedule(name):
    from ddae.backbones.schedules import noise_of

    flags = cli.parse(Pretrain, CONFIGURATIONS[name].split(), None)
    return noise_of(FRAMEWORKS["ddpm"].make_scheduler(Levels(flags.num_levels, flags.beta_range)), None)


@pytest.mark.parametrize(
    ("name", "amplitude", "least", "most"),
    [
        ("full", 0.006, 0.010, 157),
        ("T512", 0.075, 0.010, 13),
        ("T256", 0.274, 0.010, 3.5),
        ("T64", 0.723, 0.010, 0.95),
        ("smaller-half", 0.078, 0.010, 13),
        ("larger-half", 0.0005, 0.101, 1940),
    ],
)
def test_short_schedules_keep_the_image(name, amplitude, least, most):
    facts = schedule_facts(schedule(name))
    assert facts["amplitude_left"] == pytest.approx(amplitude, rel=0.06)
    assert facts["sigma_least"] == pytest.approx(least, rel=0.06)
    assert facts["sigma_most"] == pytest.approx(most, rel=0.06)


def test_the_same_sigma_is_another_timestep_in_each_schedule():
    assert nearest_timesteps(schedule("full"), [0.047]) == {0.047: 10}  # t counts from 0
    assert nearest_timesteps(schedule("T64"), [0.047]) == {0.047: 3}
    assert nearest_timesteps(schedule("larger-half"), [0.047, 0.2]).keys() == {0.2}
    assert nearest_timesteps(schedule("T64"), [0.4, 0.401]).keys() == {0.4}


@pytest.mark.slow
def test_a_sweep_goes_on_with_more_configurations(fork, tmp_path):
    def run(*configurations):
        process = fork("noise_ablation", *ARGS, "--configurations", *configurations, cwd=tmp_path)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, err
        return out

    printed = run("larger-half")
    assert "FD from real" in printed and "amplitude left" in printed
    snapshots = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/networks/*/step-*")}
    assert sorted(path.name for path in snapshots) == ["step-2", "step-4"]
    assert "The full schedule is best at generation" in run("larger-half", "full")
    assert {path: path.stat().st_mtime_ns for path in snapshots} == snapshots
    results = [json.loads(path.read_text()) for path in tmp_path.glob("out/noise-ablation-*/results.json")]
    one, both = (sorted(each["cells"], key=str) for each in sorted(results, key=lambda each: len(each["cells"])))
    assert [cell for cell in both if cell["configuration"] == "larger-half"] == one
    [folder] = {path.parent for path in tmp_path.glob("out/*/trials.csv") if len(path.read_text().splitlines()) == 5}
    assert {path.name for path in folder.glob("figures/*.png")} == {"generation.png", "sigma.png"}
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["accuracy_at_sigma_0.1"] for row in rows if row["configuration"] == "full"] != ["", ""]


def test_a_network_that_diverges_is_a_result(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    task = set_up(replace(SMALL, configurations=("full",), learning_rate=1e3, steps=40)).task
    [result] = task.run(task.cells[-1:], 1, [])
    assert "lower the learning rate" in result.params["trouble"] and result.metrics["val_accuracy"] == 0
    assert "full/40" in caplog.text

    search = HalvingSearch(task, len(task.cells), "optuna")
    while fit := search.ask():
        search.tell(fit, result)
    write_study(tmp_path / "optuna.log", task, search.trials)
    [study] = optuna.study.get_all_study_summaries(JournalStorage(JournalFileBackend(str(tmp_path / "optuna.log"))))
    assert study.n_trials == len(task.cells) and study.directions == [MAXIMIZE, MINIMIZE]


def test_of_two_objectives_those_are_best_of_which_none_is_better_in_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = set_up(replace(SMALL, configurations=("full", "T64"))).task
    trials = [Trial(cell) for cell in task.cells]
    for trial, (accuracy, fd) in zip(trials, [(0.5, 9.0), (0.7, 8.0), (0.6, 3.0), (0.6, 4.0)], strict=True):
        trial.results[1] = Result({"val_accuracy": accuracy, "fd": fd}, {}, 0, 1)
    found = Findings(task, tuple(trials), tmp_path, "", 0)
    assert found.front == [task.label(task.cells[number]) for number in (2, 1)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"configurations": ("T63",)}, "'T63' is none of full, T512"),
        ({"configurations": ("--num-levls 3",)}, "'--num-levls 3': .* is no flag"),
        ({"configurations": ("--num-levels many",)}, "--num-levels many': .*many"),
        ({"configurations": ("--dataset digits --steps 3",)}, "--steps is the same for all"),
        ({"configurations": ("--family vae",)}, "'--family vae' has no noise"),
        ({"configurations": ("full", "--num-levels 1000")}, "'full' and '--num-levels 1000' are the same training"),
        ({"training": "--out there"}, "--out is the same for all, or not for this command"),
        ({"configurations": ()}, "give one or more, and each once"),
        ({"configurations": ("full", "full")}, "give one or more, and each once"),
        ({"sigmas": (0.0,)}, "give one or more above 0"),
        ({"steps": 0}, "steps=0 must be 1 or more"),
        ({"num_snapshots": 3}, "cannot be shared evenly by num_snapshots=3"),
        ({"num_snapshots": 5}, "num_snapshots=5 must be 1 or more, and 4 at most"),
        ({"extractor": ""}, "--extractor is needed for dataset='digits'"),
        ({"num_samples": 1000}, "give --num-samples 898 or fewer"),
        ({"num_samples": 20}, "too few for a Fréchet distance"),
        ({"channels": (7,)}, "channels=7"),
    ],
)
def test_bad_input_is_one_line(flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said) as mistake:
        set_up(replace(SMALL, **flags))
    assert "\n" not in str(mistake.value)
