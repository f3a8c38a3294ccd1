import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweeps.search.halving import HalvingSearch
from sweeps.search.study import write_study
from sweeps.search.task import Objective
from tests.tasks import ToyTask, accuracies, play


def study_of(task, folder, num_trials=20):
    """(trials, the study that Optuna reads of them)"""
    search = HalvingSearch(task, num_trials)
    play(search)
    path = folder / "toy-1a2b3c4d" / "optuna.log"
    path.parent.mkdir()
    write_study(path, task, search.trials)
    assert [file.name for file in path.parent.iterdir()] == ["optuna.log"]
    study = optuna.load_study(study_name="toy-1a2b3c4d", storage=JournalStorage(JournalFileBackend(str(path))))
    return search.trials, study


def test_optuna_reads_what_was_tried(tmp_path):
    trials, study = study_of(ToyTask(), tmp_path)
    assert study.directions == [StudyDirection.MAXIMIZE] and study.metric_names == ["val_accuracy"]
    for trial, read in zip(trials, study.trials, strict=True):
        assert read.params == ToyTask().params(trial.cell)
        assert read.state == (TrialState.PRUNED if trial.stopped_early else TrialState.COMPLETE)
        assert tuple(read.intermediate_values) == tuple(trial.results)
        assert tuple(read.intermediate_values.values()) == accuracies(trial.results.values())
        assert read.value == accuracies([trial.last])[0]
        assert read.user_attrs == {
            "setting": "none",
            "steps": trial.rung,
            "run_seconds": pytest.approx(len(trial.results)),
        }
        assert read.duration.total_seconds() > 0


def test_axes_are_in_their_own_order_without_what_was_not_tried(tmp_path):
    trials, study = study_of(ToyTask(), tmp_path, num_trials=5)
    tried = {name: {getattr(trial.cell, name) for trial in trials} for name in ToyTask().axes}
    axes = study.trials[0].distributions
    assert axes["noise"] == IntDistribution(min(tried["noise"]), max(tried["noise"]))
    for name in ("depth", "width", "head"):
        values = [value for value in ToyTask().axes[name].values if value in tried[name]]
        assert axes[name] == CategoricalDistribution(values)


def test_several_objectives_are_those_of_the_study(tmp_path):
    task = ToyTask(objectives=(Objective("val_accuracy", "minimize"), Objective("val_accuracy")))
    trials, study = study_of(task, tmp_path)
    assert study.directions == [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    assert [read.values for read in study.trials] == [list(accuracies([trial.last]) * 2) for trial in trials]
