"""Which cell to fit next, on how many images: Optuna proposes, ASHA stops, and the seed alone decides."""

import warnings
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from ddae.heads import HEADS, find_head
from ddae.probe import Candidate
from sweeps.tuning.extraction import MAX_DEATHS
from sweeps.tuning.plan import REDUCTION
from sweeps.tuning.space import Space

NUM_AHEAD = 1000
"""Fits whose features are asked for before they can start."""
SHARED = "--store must name a place that all machines see"
Fit = tuple[Candidate, int]
"""A candidate, to be fitted on so many training images."""

NUM_REMEMBERED = 250
"""Trials that Optuna proposes from, at most twice as many: its time and memory grow with them."""
NUM_GOOD = 25
"""Of the best, which it remembers for good; TPE never takes more for good ones."""


@dataclass
class Tried:
    """A candidate with the val accuracy of every rung that it reached, fewest images first."""

    candidate: Candidate
    accuracies: list[float] = field(default_factory=list)
    stopped_early: bool = False


class HalvingSearch:
    """Cells in rounds, each proposed from the results of the rounds before it. Every cell of a round is fitted on the
    first rung's images; going through them in the order of proposal, ASHA (Li et al. 2020) stops those that are not
    among the best 1/REDUCTION so far, and the others go on to the next rung.

    What is fitted is thus a function of the seed and the results, whatever the number of workers and the order in which
    they answer, and fewer trials are a prefix of more. So a search that was interrupted goes on by being played again:
    nothing but the results has to be kept. No cell is proposed twice.

    candidates: what may be tried, a part of the space. first: those to try before the sampler is asked. sampler: optuna
    (TPE), random, or grid: all candidates in their order. round_size: None is all trials at once.
    """

    def __init__(
        self,
        space: Space,
        candidates: Sequence[Candidate],
        rungs: Sequence[int],
        num_trials: int,
        first: Sequence[Candidate] = (),
        sampler: str = "optuna",
        seed: int = 0,
        round_size: int | None = None,
    ):
        self.axes, self.rungs = Axes(space), rungs
        self.study = make_study(make_sampler(sampler, seed))
        self.num_trials = min(num_trials, len(candidates))
        self.round_size = round_size or self.num_trials
        self.tried: list[Tried] = []
        """Of the rounds that have ended, in the order of proposal."""
        self.settled: list[Tried] = []
        """All that were stopped or reached the last rung, in the order in which that was known."""
        self._candidates = candidates
        self._rows = {candidate: row for row, candidate in enumerate(candidates)}
        self._points = np.array([self.axes.point(candidate) for candidate in candidates])
        self._is_tried = np.zeros(len(candidates), dtype=bool)
        self._ahead = deque(candidates if sampler == "grid" else (c for c in dict.fromkeys(first) if c in self._rows))
        self._learns = sampler == "optuna"
        self._asked: list[optuna.Trial] = []
        """Optuna's, of the round, where it learns from them."""
        self._accuracies: list[list[float]] = [[] for _ in rungs]
        self._waiting: deque[Fit] = deque()
        self._results: dict[Fit, float] = {}
        self._new_round()

    @property
    def ended(self) -> bool:
        return len(self.tried) >= self.num_trials

    def ask(self) -> Fit | None:
        """The next fit; None where it depends on results that are not told yet, and at the end."""
        if not self._waiting and len(self._reached[0]) < self._size:
            self._go_on(Tried(self._propose()), 0)
        return self._waiting.popleft() if self._waiting else None

    def tell(self, fit: Fit, accuracy: float) -> None:
        """The val accuracy of a fit that was asked for."""
        self._results[fit] = accuracy
        for rung, reached in enumerate(self._reached):
            while self._num_judged[rung] < len(reached):
                one = reached[self._num_judged[rung]]
                result = self._results.pop((one.candidate, self.rungs[rung]), None)
                if result is None:
                    break
                self._num_judged[rung] += 1
                self._judge(one, rung, result)
        if self._num_judged == [self._size, *(len(reached) for reached in self._reached[1:])]:
            self._end_round()

    def _new_round(self) -> None:
        self._size = min(self.round_size, self.num_trials - len(self.tried))
        self._reached: list[list[Tried]] = [[] for _ in self.rungs]
        self._num_judged = [0] * len(self.rungs)

    def _go_on(self, one: Tried, rung: int) -> None:
        self._reached[rung].append(one)
        self._waiting.append((one.candidate, self.rungs[rung]))

    def _judge(self, one: Tried, rung: int, accuracy: float) -> None:
        one.accuracies.append(accuracy)
        so_far = self._accuracies[rung]
        insort(so_far, accuracy)
        is_last = rung + 1 == len(self.rungs)
        one.stopped_early = not is_last and accuracy < so_far[-max(1, len(so_far) // REDUCTION)]
        if is_last or one.stopped_early:
            self.settled.append(one)
        else:
            self._go_on(one, rung + 1)

    def _end_round(self) -> None:
        for one, trial in zip(self._reached[0], self._asked, strict=self._learns):
            for rung, accuracy in enumerate(one.accuracies):
                trial.report(accuracy, REDUCTION**rung)
            if one.stopped_early:
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, one.accuracies[-1])
        self._asked = []
        self.tried += self._reached[0]
        self._new_round()

    def _propose(self) -> Candidate:
        if not self._asked and len(self.study.get_trials(deepcopy=False)) >= 2 * NUM_REMEMBERED:
            self._forget()
        if self._ahead:
            candidate = self._ahead.popleft()
            trial = self._ask_for(candidate)
        else:
            trial = self.axes.ask(self.study)
            proposed = self.axes.candidate(trial.params)
            candidate = self._nearest(proposed)
            if candidate != proposed:
                self.study.tell(trial, state=TrialState.FAIL)
                trial = self._ask_for(candidate)
        self._is_tried[self._rows[candidate]] = True
        if self._learns:
            self._asked.append(trial)
        return candidate

    def _ask_for(self, candidate: Candidate) -> optuna.Trial:
        self.study.enqueue_trial(self.axes.params(candidate))
        return self.axes.ask(self.study)

    def _nearest(self, candidate: Candidate) -> Candidate:
        """Of those that were not tried: itself, or places apart, each axis as a share of its length; another head
        counts as the whole of one."""
        apart = np.abs(self._points - self.axes.point(candidate))
        distance = apart[:, :-1].sum(axis=1) + (apart[:, -1] > 0)
        distance[self._is_tried] = np.inf
        return self._candidates[distance.argmin()]

    def _forget(self) -> None:
        """Leave Optuna the newest trials, and the best ones."""
        told = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
        complete = [trial for trial in told if trial.state == TrialState.COMPLETE]
        good = sorted(complete, key=lambda trial: -trial.value)[:NUM_GOOD]
        kept = {trial.number for trial in [*good, *told[-NUM_REMEMBERED:]]}
        self.study = make_study(self.study.sampler)
        self.study.add_trials([trial for trial in told if trial.number in kept])


class TuneSearcher(Searcher):
    """The search as Tune asks for it: a Tune trial is one fit. A fit whose result is known is not asked for, and no
    other before its features stand.

    known: the val accuracy that stands in the ledger, if any. features: asks for those of a fit, which may have been
    lost since they were asked for before. num_slots: how many fits can run at once just now.
    """

    def __init__(
        self,
        search: HalvingSearch,
        known: Callable[[Fit], float | None],
        features: Callable[[Fit, bool], Future],
        num_slots: Callable[[], int],
    ):
        super().__init__(metric="val_accuracy", mode="max")
        self.search, self.known, self.features, self.num_slots = search, known, features, num_slots
        self._running: dict[str, Fit] = {}
        self._waiting: dict[Fit, Future] = {}
        self._lost: set[Fit] = set()
        self._deaths: Counter[Fit] = Counter()
        self.go_on()

    def go_on(self) -> None:
        """To the fits whose results are not known."""
        while len(self._waiting) < NUM_AHEAD and (fit := self.search.ask()) is not None:
            accuracy = self.known(fit)
            if accuracy is None:
                self._waiting[fit] = self.features(fit, False)
            else:
                self.search.tell(fit, accuracy)

    def suggest(self, trial_id: str) -> dict | str | None:
        if self.search.ended:
            return Searcher.FINISHED
        if len(self._running) >= self.num_slots():
            return None
        if not self._running:  # where nothing runs, Tune sleeps for a second after it is told to wait
            wait(self._waiting.values(), return_when=FIRST_COMPLETED)
        for fit, features in self._waiting.items():
            if features.done():
                features.result()
                del self._waiting[fit]
                candidate, num_images = self._running[trial_id] = fit
                return {**asdict(candidate), "num_images": num_images}
        return None

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        fit = self._running.pop(trial_id)
        if error or result is None:
            self._deaths[fit] += 1
            if self._deaths[fit] == MAX_DEATHS:
                raise ValueError(
                    f"{fit[0].name} on {fit[1]:,} images: its process died {MAX_DEATHS} times; is there enough memory?"
                )
            self._waiting[fit] = self.features(fit, False)
            return
        if result["lost"]:
            if fit in self._lost:
                raise ValueError(f"{result['lost']}, again; {SHARED}")
            self._lost.add(fit)
            self._waiting[fit] = self.features(fit, True)
        else:
            self.search.tell(fit, result["val_accuracy"])
            self.go_on()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state, and a rerun is the way to go on."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as save."""

    def __getstate__(self) -> dict:
        return {}


class Axes:
    """The space as Optuna sees it: block, timestep and pooling are places on an axis, so that the sampler knows
    neighbours to be alike; a family of heads is a category, and its sizes are an axis that only it has."""

    def __init__(self, space: Space):
        self.values: dict[str, Sequence] = {
            "block": [block.name for block in space.blocks],
            "timestep": space.timesteps,
            "pooling": space.poolings,
        }
        self.numbers = {head: number for number, head in enumerate(space.heads)}
        names = {head: family for family, head in HEADS.items()}
        self.heads: dict[str, list[str]] = {}
        for head in space.heads:
            self.heads.setdefault(names[find_head(head)[0]], []).append(head)

    def ask(self, study: optuna.Study) -> optuna.Trial:
        """A new trial of the study that has all its params."""
        trial = study.ask()
        for axis, values in self.values.items():
            trial.suggest_int(axis, 0, len(values) - 1)
        family = trial.suggest_categorical("head", list(self.heads))
        if len(self.heads[family]) > 1:
            trial.suggest_int(f"{family} size", 0, len(self.heads[family]) - 1)
        return trial

    def params(self, candidate: Candidate) -> dict[str, int | str]:
        places = {axis: values.index(getattr(candidate, axis)) for axis, values in self.values.items()}
        family = next(family for family, heads in self.heads.items() if candidate.head in heads)
        heads = self.heads[family]
        size = {f"{family} size": heads.index(candidate.head)} if len(heads) > 1 else {}
        return {**places, "head": family, **size}

    def candidate(self, params: dict) -> Candidate:
        chosen = {axis: values[params[axis]] for axis, values in self.values.items()}
        family = params["head"]
        return Candidate(**chosen, head=self.heads[family][params.get(f"{family} size", 0)])

    def point(self, candidate: Candidate) -> list[float]:
        """Its place on every axis, as a share of its length, and the number of its head."""
        places = [values.index(getattr(candidate, axis)) / len(values) for axis, values in self.values.items()]
        return [*places, self.numbers[candidate.head]]


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """name: optuna (TPE); any other draws at random."""
    if name != "optuna":
        return optuna.samplers.RandomSampler(seed=seed)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # TPESampler(group=True)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True, group=True)


def make_study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """In memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize", sampler=sampler)
