"""A search as an Optuna study, which Optuna's dashboard opens."""

import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from storage.files import published
from sweeps.search.task import Axis, Task, Trial, values_of


def write_study(path: Path, task: Task, trials: Sequence[Trial]) -> None:
    """Write an Optuna journal of one study, named as the folder of `path`: one trial a cell, in the order of proposal,
    with its objective by rung; PRUNED is what ASHA stopped."""
    lines = JournalInMemory()
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(lines),
        study_name=path.parent.name,
        directions=[objective.direction for objective in task.objectives],
    )
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        study.set_metric_names([objective.metric for objective in task.objectives])
    tried = {name: [getattr(trial.cell, name) for trial in trials] for name in task.axes}
    axes = {name: distribution(axis, tried[name]) for name, axis in task.axes.items()}
    study.add_trials(as_optuna(trial, axes, task) for trial in trials)
    with published(path) as part:
        JournalFileBackend(str(part)).append_logs(lines.logs)


def distribution(axis: Axis, tried: Sequence) -> BaseDistribution:
    """The values that were tried, in the axis' own order, so that charts show blocks as the data meets them. Of the
    whole axis Optuna would take what screening left for the sampler's choice, and find the axis important for it."""
    values = [value for value in axis.values if value in set(tried)]
    if not axis.numeric:
        return CategoricalDistribution(values)
    kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
    return kind(min(values), max(values))


def as_optuna(trial: Trial, axes: dict[str, BaseDistribution], task: Task) -> FrozenTrial:
    metrics = [objective.metric for objective in task.objectives]
    one, values = len(metrics) == 1, values_of(task, trial.last)
    state = TrialState.PRUNED if trial.stopped_early and one else TrialState.COMPLETE
    params = {name: getattr(trial.cell, name) for name in axes}
    known = {**task.params(trial.cell), **trial.last.metrics, **trial.last.params}
    frozen = optuna.trial.create_trial(
        state=TrialState.FAIL if values is None else state,
        values=values,
        params=params,
        distributions=axes,
        intermediate_values={rung: result.metrics[metrics[0]] for rung, result in trial.results.items()} if one else {},
        user_attrs={name: value for name, value in known.items() if name not in params and name not in metrics}
        | {task.resource: trial.rung, "run_seconds": sum(result.run_seconds for result in trial.results.values())},
    )
    frozen.datetime_start = datetime.fromtimestamp(min(result.started_seconds for result in trial.results.values()))
    frozen.datetime_complete = datetime.fromtimestamp(trial.last.ended_seconds)
    return frozen


class JournalInMemory(BaseJournalBackend):
    """A journal in memory: a file's is flushed to disk after every line."""

    def __init__(self) -> None:
        self.logs: list[dict] = []

    def read_logs(self, log_number_from: int) -> list[dict]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict]) -> None:
        self.logs += logs
