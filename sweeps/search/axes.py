"""The axes of a Task as Optuna sees them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import optuna

from sweeps.search.task import Axis, Cell


class OptunaAxes:
    """Values that are neighbours are positions on an axis, so that the sampler knows them to be alike; kinds are
    categories, and a kind of several values has an axis of its own, which no other cell has."""

    def __init__(self, axes: Mapping[str, Axis]):
        self.axes = axes
        self.of_kind = {
            name: {kind: [v for v, k in zip(axis.values, axis.kinds, strict=True) if k == kind] for kind in axis.kinds}
            for name, axis in axes.items()
            if axis.kinds is not None
        }

    def ask(self, study: optuna.Study) -> tuple[optuna.Trial, dict[str, Any]]:
        """(a new trial of the study that has all its params; axis -> value, which need not be a cell of the Task)."""
        trial, values = study.ask(), {}
        for name, axis in self.axes.items():
            if axis.kinds is None:
                values[name] = axis.values[trial.suggest_int(name, 0, len(axis.values) - 1)]
                continue
            kind = trial.suggest_categorical(name, list(self.of_kind[name]))
            alike = self.of_kind[name][kind]
            values[name] = alike[trial.suggest_int(size_axis(kind), 0, len(alike) - 1) if len(alike) > 1 else 0]
        return trial, values

    def params(self, cell: Cell) -> dict[str, int | str]:
        params: dict[str, int | str] = {}
        for name, axis in self.axes.items():
            position = axis.values.index(getattr(cell, name))
            if axis.kinds is None:
                params[name] = position
                continue
            params[name] = kind = axis.kinds[position]
            if len(values := self.of_kind[name][kind]) > 1:
                params[size_axis(kind)] = values.index(axis.values[position])
        return params

    def point(self, values: Mapping[str, Any]) -> list[float]:
        """Where it is on each axis, from 0 to 1; of an axis with kinds the number of its value."""
        return [
            axis.values.index(values[name]) / (len(axis.values) if axis.kinds is None else 1)
            for name, axis in self.axes.items()
        ]


def size_axis(kind: str) -> str:
    return f"{kind} size"


def as_values(cell: Cell) -> dict[str, Any]:
    """axis -> value."""
    return {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)}
