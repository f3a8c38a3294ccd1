"""Which cell to try next, at which rung: Optuna proposes, ASHA stops, and the seed alone decides."""

from bisect import insort
from collections import deque
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.trial import TrialState

from sweeps.search.axes import OptunaAxes, as_values
from sweeps.search.samplers import find_sampler
from sweeps.search.task import REDUCTION, Cell, Fit, Result, Task, Trial, values_of

NUM_REMEMBERED = 250
"""How many trials Optuna proposes from, at least, and twice as many at most: its time and memory grow with them."""
NUM_GOOD = 25
"""How many of the best it remembers for good; TPE never counts more as good ones."""


MIN_ROUND_SIZE = 4
NUM_ROUNDS = 10
"""Rounds that a search is planned for, if they are large enough."""


def plan_round_size(sampler: str, num_trials: int, num_cells: int) -> int:
    """How many cells are proposed at once where nobody says it, so that many trials keep many slots busy: a function of
    the plan, not of the cluster, because what is tried depends on it."""
    num_trials = min(num_trials, num_cells) if find_sampler(sampler).rounds else 0
    return max(MIN_ROUND_SIZE, num_trials // NUM_ROUNDS)


def check_search(sampler: str, num_trials: int, round_size: int | None = None) -> None:
    """Raises ValueError for what no search can have."""
    find_sampler(sampler)
    for name, number in (("num_trials", num_trials), ("round_size", round_size)):
        if number is not None and number < 1:
            raise ValueError(f"{name}={number} must be 1 or more")


class HalvingSearch:
    """Cells in rounds, each proposed from the results of the rounds before it. Every cell of a round is run at the
    first rung; going through them in the order of proposal, ASHA (Li et al. 2020) stops those that are not among the
    best 1/REDUCTION so far, and the others go on to the next rung.

    What is run is thus a function of the seed and the results, whatever the number of workers and the order in which
    they answer, and fewer trials are a prefix of more. So a search that was interrupted goes on by being played again:
    nothing but the results has to be kept. No cell is proposed twice.

    cells: what may be tried, a part of the task's. first: cells to try before the sampler is asked. sampler: a name in
    SAMPLERS. round_size: how many cells a sampler that works in rounds proposes at once.
    """

    def __init__(
        self,
        task: Task,
        num_trials: int,
        sampler: str = "optuna",
        seed: int = 0,
        round_size: int = MIN_ROUND_SIZE,
        cells: Sequence[Cell] | None = None,
        first: Sequence[Cell] = (),
    ):
        check_search(sampler, num_trials, round_size)
        self.task, self.rungs, self.axes = task, task.rungs, OptunaAxes(task.axes)
        make, self._learns, rounds = find_sampler(sampler)
        self.study = self._new_study(make(seed) if make else None)
        self._cells = task.cells if cells is None else cells
        self.num_trials = len(self._cells) if make is None else min(num_trials, len(self._cells))
        self.round_size = round_size if rounds else self.num_trials
        self.trials: list[Trial] = []
        """Those of the rounds that have ended, in the order of proposal."""
        self.ended_trials: list[Trial] = []
        """All that were stopped or reached the last rung, in the order in which that was known."""
        self._rows = {cell: row for row, cell in enumerate(self._cells)}
        self._points = np.array([self.axes.point(as_values(cell)) for cell in self._cells])
        self._has_kinds = np.array([axis.kinds is not None for axis in task.axes.values()])
        self._is_tried = np.zeros(len(self._cells), dtype=bool)
        self._ahead = deque(self._cells if make is None else (c for c in dict.fromkeys(first) if c in self._rows))
        self._asked: list[optuna.Trial] = []
        """Optuna's trials of the round, where it learns from them."""
        self._merits: list[list[float]] = [[] for _ in self.rungs]
        self._waiting: deque[Fit] = deque()
        self._results: dict[Fit, Result] = {}
        self._new_round()

    @property
    def ended(self) -> bool:
        return len(self.trials) >= self.num_trials

    def ask(self) -> Fit | None:
        """The next fit; None where it depends on results that are not known yet, and at the end."""
        if not self._waiting and len(self._reached[0]) < self._size:
            self._go_on(Trial(self._propose()), 0)
        return self._waiting.popleft() if self._waiting else None

    def tell(self, fit: Fit, result: Result) -> None:
        """The result of a fit that was asked for."""
        self._results[fit] = result
        for number, reached in enumerate(self._reached):
            while self._num_judged[number] < len(reached):
                trial = reached[self._num_judged[number]]
                known = self._results.pop(Fit(trial.cell, self.rungs[number]), None)
                if known is None:
                    break
                self._num_judged[number] += 1
                self._judge(trial, number, known)
        if self._num_judged == [self._size, *(len(reached) for reached in self._reached[1:])]:
            self._end_round()

    def _new_round(self) -> None:
        self._size = min(self.round_size, self.num_trials - len(self.trials))
        self._reached: list[list[Trial]] = [[] for _ in self.rungs]
        self._num_judged = [0] * len(self.rungs)

    def _go_on(self, trial: Trial, number: int) -> None:
        self._reached[number].append(trial)
        self._waiting.append(Fit(trial.cell, self.rungs[number]))

    def _judge(self, trial: Trial, number: int, result: Result) -> None:
        trial.results[self.rungs[number]] = result
        merit, so_far = self.task.objectives[0].merit(result), self._merits[number]
        insort(so_far, merit)
        if number + 1 == len(self.rungs):
            trial.state = "finished"
        elif merit < so_far[-max(1, len(so_far) // REDUCTION)]:
            trial.state = "stopped"
        else:
            self._go_on(trial, number + 1)
            return
        self.ended_trials.append(trial)

    def _end_round(self) -> None:
        for trial, asked in zip(self._reached[0], self._asked, strict=self._learns):
            self._tell_optuna(asked, trial)
        self._asked = []
        self.trials += self._reached[0]
        self._new_round()

    def _tell_optuna(self, asked: optuna.Trial, trial: Trial) -> None:
        """Every rung of one objective; of several, which Optuna does not prune on, the trials that were finished. One
        that lacks an objective, as a network that diverged, has failed."""
        values = values_of(self.task, trial.last)
        if values is None:
            self.study.tell(asked, state=TrialState.FAIL)
            return
        if len(values) == 1:
            for number, result in enumerate(trial.results.values()):
                asked.report(result.metrics[self.task.objectives[0].metric], REDUCTION**number)
        if trial.stopped_early:
            self.study.tell(asked, state=TrialState.PRUNED if len(values) == 1 else TrialState.FAIL)
        else:
            self.study.tell(asked, values)

    def _propose(self) -> Cell:
        if not self._asked and len(self.study.get_trials(deepcopy=False)) >= 2 * NUM_REMEMBERED:
            self._forget()
        if self._ahead:
            cell = self._ahead.popleft()
            asked = self._ask_for(cell) if self._learns else None
        else:
            asked, proposed = self.axes.ask(self.study)
            cell = self._nearest(proposed)
            if as_values(cell) != proposed:
                self.study.tell(asked, state=TrialState.FAIL)
                asked = self._ask_for(cell)
        self._is_tried[self._rows[cell]] = True
        if self._learns:
            self._asked.append(asked)
        return cell

    def _ask_for(self, cell: Cell) -> optuna.Trial:
        self.study.enqueue_trial(self.axes.params(cell))
        asked, _ = self.axes.ask(self.study)
        return asked

    def _nearest(self, values: dict) -> Cell:
        """The cell nearest to a proposal among those that were not tried: distances on ordered axes are shares of their
        lengths; another value of an axis with kinds is as far as a whole axis."""
        apart = np.abs(self._points - self.axes.point(values))
        distance = np.where(self._has_kinds, apart > 0, apart).sum(axis=1)
        distance[self._is_tried] = np.inf
        return self._cells[distance.argmin()]

    def _forget(self) -> None:
        """Leave Optuna the newest trials, and the best ones."""
        known = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
        complete = [trial for trial in known if trial.state == TrialState.COMPLETE]
        sign = -1 if self.task.objectives[0].direction == "maximize" else 1
        good = sorted(complete, key=lambda trial: sign * trial.values[0])[:NUM_GOOD]
        kept = {trial.number for trial in [*good, *known[-NUM_REMEMBERED:]]}
        self.study = self._new_study(self.study.sampler)
        self.study.add_trials([trial for trial in known if trial.number in kept])

    def _new_study(self, sampler: optuna.samplers.BaseSampler | None) -> optuna.Study:
        """A study in memory."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = [objective.direction for objective in self.task.objectives]
        return optuna.create_study(directions=directions, sampler=sampler)
