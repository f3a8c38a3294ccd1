import os
import time
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from threading import Timer

import pytest

from storage.ledger import Ledger
from sweeps.cluster import tune
from sweeps.cluster.pool import MAX_DEATHS
from sweeps.cluster.session import ray_session
from sweeps.cluster.tune import MAX_TOGETHER, Run, TuneSearcher, run_trials
from sweeps.search.halving import HalvingSearch
from sweeps.search.task import Resources
from tests.tasks import ToyTask, play, tried

TASK = ToyTask()


class Features:
    """Asked for, and there when somebody says so."""

    def __init__(self):
        self.asked = []

    def __call__(self, fit, lost):
        self.asked.append((fit, lost, Future()))
        return self.asked[-1][2]

    def arrive(self):
        for _, _, future in self.asked:
            if not future.done():
                future.set_result(None)


@pytest.fixture
def features():
    return Features()


@pytest.fixture
def searcher_of(tmp_path, features):
    """Makes a searcher of searches, on a cluster of so many CPUs."""

    def make(*searches, num_slots=2):
        runs = [Run(search, str(tmp_path), features) for search in searches]
        return TuneSearcher(runs, lambda: Resources(num_slots))

    return make


def answer(group, number_of_results=None, lost=""):
    """What a trial reports."""
    records = [(number, TASK.result(*fit).as_record()) for number, fit in enumerate(group.fits)]
    return {"records": records[:number_of_results], "lost": lost}


def test_tune_is_asked_for_no_fit_whose_result_is_known(searcher_of, features, tmp_path):
    expected = play(HalvingSearch(TASK, 20))
    fits = [(cell, rung) for cell, values, _ in expected for rung, _ in zip(TASK.rungs, values, strict=False)]
    unknown = [fit for number, fit in enumerate(fits) if number % 3 == 0]
    for fit in set(fits) - set(unknown):
        Ledger(tmp_path / "ledger").put(TASK.key(*fit), TASK.result(*fit).as_record())
    searcher = searcher_of(search := HalvingSearch(TASK, 20), num_slots=3)
    running, number = {}, 0
    features.arrive()
    while (config := searcher.suggest(str(number))) != searcher.FINISHED:
        if config is None:
            trial_id, group = running.popitem()
            searcher.on_trial_complete(trial_id, answer(group))
            features.arrive()
            continue
        running[str(number)] = config["group"]
        for fit in config["group"].fits:
            unknown.remove(fit)
        number += 1
    assert not unknown and not running
    assert tried(search) == expected


def test_a_fit_waits_for_what_it_needs_and_for_a_slot(searcher_of, features):
    searcher = searcher_of(HalvingSearch(TASK, 20))
    assert len(features.asked) == 4  # a round
    last, lost, future = features.asked[3]
    assert not lost
    Timer(0.1, future.set_result, [None]).start()
    first = searcher.suggest("0")["group"]
    assert first.fits == [last]
    assert searcher.suggest("1") is None
    features.arrive()
    second = searcher.suggest("1")["group"]
    assert second.fits[0] == features.asked[0][0]
    assert searcher.suggest("2") is None
    searcher.on_trial_complete("0", answer(first))
    third = searcher.suggest("2")["group"]
    asked = [fit for fit, _, _ in features.asked[:3]]
    assert third.fits[0] == next(fit for fit in asked if fit not in second.fits)


@dataclass(frozen=True)
class OnGpus(ToyTask):
    share: float = 0.25

    def resources(self, cell, rung):
        return Resources(0.1, self.share)


@pytest.mark.parametrize(("share", "num_together"), [(0.25, 4), (1, 2)])
def test_trials_that_share_gpus_leave_half_of_each_to_workers(features, tmp_path, share, num_together):
    search = HalvingSearch(OnGpus(share=share), 20, round_size=20)
    searcher = TuneSearcher([Run(search, str(tmp_path), features)], lambda: Resources(16, 2))
    features.arrive()
    groups = [searcher.suggest(str(number)) for number in range(8)]
    assert [group is not None for group in groups] == [number < num_together for number in range(8)]


@dataclass(frozen=True)
class OneRead(ToyTask):
    """All cells read the same; those of attention hold two CPUs."""

    def reads(self, cell, rung):
        return ()

    def resources(self, cell, rung):
        return Resources(1 if cell.head == "linear" else 2)


SITE = [cell for cell in TASK.cells if (cell.depth, cell.noise) == (1, 10)]
"""Four cells that share a read."""


@pytest.mark.parametrize(("num_slots", "shares"), [(1, [4]), (2, [2, 1]), (3, [2, 1, 1]), (4, [1] * 4)])
def test_cells_that_share_a_read_go_together_and_no_slot_takes_more_than_its_part_of_what_is_left(
    searcher_of, features, num_slots, shares
):
    searcher = searcher_of(HalvingSearch(TASK, 1, "grid", cells=SITE), num_slots=num_slots)
    features.arrive()
    groups = [searcher.suggest(str(number))["group"].cells for number in range(num_slots)]
    assert searcher.suggest("one more") is None
    assert list(map(len, groups)) == shares
    assert [cell for group in groups for cell in group] == SITE[: sum(shares)]


def test_cells_of_another_read_are_in_another_group(searcher_of, features):
    others = [cell for cell in TASK.cells if (cell.depth, cell.noise) in ((1, 0), (2, 10))]
    mixed = [cell for pair in zip_longest(SITE, others) for cell in pair if cell]
    searcher = searcher_of(HalvingSearch(TASK, 1, "grid", cells=mixed), num_slots=1)
    features.arrive()
    assert list(searcher.suggest("0")["group"].cells) == SITE


def test_a_group_is_of_one_size_and_not_too_large(searcher_of, features):
    task = OneRead()
    searcher = searcher_of(HalvingSearch(task, 1, "grid"), num_slots=1)
    features.arrive()
    config = searcher.suggest("0")
    linear = [cell for cell in task.cells if cell.head == "linear"]
    assert len(linear) > MAX_TOGETHER
    assert list(config["group"].cells) == linear[:MAX_TOGETHER]
    assert config["resources"] == Resources(1)


def test_what_needs_more_than_is_free_waits_and_runs_alone(searcher_of, features):
    task = OneRead()
    two, three = (next(c for c in task.cells if c.head == head) for head in ("attention-1", "linear"))
    searcher = searcher_of(HalvingSearch(task, 1, "grid", cells=[three, two]), num_slots=2)
    features.arrive()
    assert searcher.suggest("0")["group"].cells == (three,)
    assert searcher.suggest("1") is None
    searcher = searcher_of(HalvingSearch(task, 1, "grid", cells=[two]), num_slots=1)
    features.arrive()
    assert searcher.suggest("0")["resources"] == Resources(2)  # Ray waits for a machine that has two


def test_two_searches_take_turns(searcher_of, features):
    searcher = searcher_of(HalvingSearch(TASK, 8), HalvingSearch(ToyTask(name="other"), 8, seed=1), num_slots=4)
    features.arrive()
    assert [searcher.suggest(str(number))["group"].run for number in range(4)] == [0, 1, 0, 1]


def test_features_that_are_lost_are_asked_for_once_more(searcher_of, features):
    searcher = searcher_of(HalvingSearch(TASK, 1))
    for number, lost in enumerate((False, True)):
        features.arrive()
        group = searcher.suggest(str(number))["group"]
        assert features.asked[-1][:2] == (group.fits[0], lost)
        if not lost:
            searcher.on_trial_complete(str(number), answer(group, 0, lost="row 5 is gone"))
    again = "^row 5 is gone, again; --store must name a folder or an address that all machines see$"
    with pytest.raises(ValueError, match=again):
        searcher.on_trial_complete("1", answer(group, 0, lost="row 5 is gone"))


def test_of_a_group_only_what_has_no_result_is_run_again(searcher_of, features):
    searcher = searcher_of(search := HalvingSearch(TASK, 1, "grid", cells=SITE), num_slots=1)
    features.arrive()
    group = searcher.suggest("0")["group"]
    num_asked = len(features.asked)
    searcher.on_trial_complete("0", answer(group, 2, lost="row 5 is gone"))
    assert [(fit, lost) for fit, lost, _ in features.asked[num_asked:] if fit.rung == group.rung] == [
        (fit, True) for fit in group.fits[2:]
    ]
    features.arrive()
    assert searcher.suggest("1")["group"].fits[0] not in group.fits[:2]
    assert not search.ended


def test_features_that_cannot_be_made_end_the_search(searcher_of, features):
    searcher = searcher_of(HalvingSearch(TASK, 20))
    features.asked[0][2].set_exception(ValueError("a broken image"))
    with pytest.raises(ValueError, match="a broken image"):
        searcher.suggest("0")


def test_a_fit_whose_process_dies_is_tried_again(searcher_of, features):
    searcher = searcher_of(HalvingSearch(TASK, 1))
    features.arrive()
    fits = searcher.suggest("0")["group"].fits
    for number in range(1, MAX_DEATHS):
        searcher.on_trial_complete(str(number - 1), error=True)
        features.arrive()
        assert searcher.suggest(str(number))["group"].fits == fits
    message = f"^{TASK.label(fits[0].cell)} with steps=300: its process died 20 times; is there enough memory"
    with pytest.raises(ValueError, match=message):
        searcher.on_trial_complete(str(number), error=True)


@pytest.fixture
def ray(fork, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", fork.keywords["RAY_ADDRESS"])
    with ray_session():
        yield


@pytest.mark.usefixtures("ray")
class TestRealTune:
    def run(self, search, store):
        there, busy, heard = Future(), [], []
        there.set_result(None)
        run_trials([Run(search, str(store), lambda fit, lost: there)], busy, lambda: heard.append(len(search.trials)))
        return busy, heard

    def test_calling_tune_again_and_again_changes_nothing(self, monkeypatch, tmp_path):
        monkeypatch.setattr(tune, "TRIALS_A_SLOT", 4)
        expected = play(HalvingSearch(TASK, 10))
        busy, heard = self.run(search := HalvingSearch(TASK, 10), tmp_path)
        assert tried(search) == expected
        num_fits = sum(len(values) for _, values, _ in expected)
        assert len(busy) == num_fits and all(start < end for start, end in busy)
        assert heard == sorted(heard) and heard[-1] == 10
        assert len(list((tmp_path / "ledger").rglob("*.json"))) == num_fits
        again, _ = self.run(replayed := HalvingSearch(TASK, 10), tmp_path)
        assert tried(replayed) == expected and again == []

    def test_processes_outlive_the_rounds_of_a_search(self, tmp_path):
        processes = tmp_path / "processes"
        processes.mkdir()
        task = Noting(processes=str(processes))
        self.run(HalvingSearch(task, 12, round_size=4), tmp_path / "store")
        assert len(list(processes.iterdir())) == 2

    @pytest.mark.parametrize("error", [ValueError, RuntimeError])
    def test_what_no_retry_mends_is_one_line_that_names_the_cell(self, tmp_path, error):
        with pytest.raises(ValueError, match=r"^[^\n]*ToyCell\(depth=[^\n]*: no such thing$"):
            self.run(HalvingSearch(Failing(error=error), 4), tmp_path)


@dataclass(frozen=True)
class Noting(ToyTask):
    """Two of its trials run at once where Ray has one CPU; each says in which process."""

    processes: str = ""

    def resources(self, cell, rung):
        return Resources(num_cpus=0.5)

    def run(self, cells, rung, checkpoints):
        Path(self.processes, str(os.getpid())).touch()
        time.sleep(1)
        return super().run(cells, rung, checkpoints)


@dataclass(frozen=True)
class Failing(ToyTask):
    error: type[Exception] = ValueError

    def run(self, cells, rung, checkpoints):
        raise self.error("no such thing")
