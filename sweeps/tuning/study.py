"""A search as an Optuna study, which Optuna's dashboard opens."""

import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ddae.probe import Candidate
from storage.feature_store import published
from sweeps.tuning.outcome import FinishedTrial
from sweeps.tuning.plan import Plan
from sweeps.tuning.space import Space


def write_study(path: Path, plan: Plan, trials: Sequence[FinishedTrial]) -> None:
    """An Optuna journal of one study, named as the folder of `path`: one trial a candidate, in the order of proposal,
    with its val accuracy by number of images; PRUNED is what ASHA stopped."""
    lines = Lines()
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(lines), study_name=path.parent.name, direction="maximize"
    )
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["val_accuracy"])
    axes = distributions(plan.space, [trial.candidate for trial in trials])
    study.add_trials(as_optuna(trial, axes, plan) for trial in trials)
    with published(path) as part:
        JournalFileBackend(str(part)).append_logs(lines.logs)


def distributions(space: Space, tried: Sequence[Candidate]) -> dict[str, BaseDistribution]:
    """What was tried, in the space's own order, so that charts show blocks as the data meets them. Of the whole space,
    Optuna would take what the looks left for the sampler's choice, and find the timestep important for it."""
    timesteps = {cell.timestep for cell in tried}
    blocks, poolings, heads = ({getattr(cell, axis) for cell in tried} for axis in ("block", "pooling", "head"))
    return {
        "block": CategoricalDistribution([block.name for block in space.blocks if block.name in blocks]),
        "timestep": IntDistribution(min(timesteps), max(timesteps)),
        "pooling": CategoricalDistribution([pooling for pooling in space.poolings if pooling in poolings]),
        "head": CategoricalDistribution([head for head in space.heads if head in heads]),
    }


def as_optuna(trial: FinishedTrial, axes: dict[str, BaseDistribution], plan: Plan) -> FrozenTrial:
    last = trial.rungs[-1]
    frozen = optuna.trial.create_trial(
        state=TrialState.PRUNED if trial.stopped_early else TrialState.COMPLETE,
        value=last.val_accuracy,
        params={axis: getattr(trial.candidate, axis) for axis in axes},
        distributions=axes,
        intermediate_values={rung.num_images: rung.val_accuracy for rung in trial.rungs},
        user_attrs={
            "sigma": plan.sigmas[trial.candidate.timestep],
            "stderr": last.stderr,
            "setting": last.setting,
            "num_images": last.num_images,
            "fit_seconds": sum(rung.fit_seconds for rung in trial.rungs),
        },
    )
    frozen.datetime_start = datetime.fromtimestamp(trial.started_seconds)
    frozen.datetime_complete = datetime.fromtimestamp(trial.ended_seconds)
    return frozen


class Lines(BaseJournalBackend):
    """A journal in memory: a file's is flushed to disk after every line."""

    def __init__(self) -> None:
        self.logs: list[dict] = []

    def read_logs(self, log_number_from: int) -> list[dict]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict]) -> None:
        self.logs += logs
