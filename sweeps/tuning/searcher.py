"""Which candidate to try next: a thin Tune searcher over Optuna's ask and tell."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from ddae.heads import HEADS, find_head
from ddae.probe import Candidate
from sweeps.tuning.space import Space


class OptunaSearcher(Searcher):
    """Never repeats a candidate, ends when all are tried, tells Optuna PRUNED of what ASHA stopped, and goes on from
    the study that an interrupted sweep left.

    candidates: what may be tried, a part of the space. first: those to try before the sampler is asked.
    """

    def __init__(
        self,
        space: Space,
        study: optuna.Study,
        candidates: Sequence[Candidate],
        num_trials: int,
        first: Sequence[Candidate],
        in_order: bool = False,
    ):
        super().__init__(metric="val_accuracy", mode="max")
        self.axes, self.study, self.num_trials = Axes(space), study, num_trials
        self.in_order = in_order
        while study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            self.axes.ask(study)
        interrupted = study.get_trials(states=[TrialState.RUNNING])
        for trial in interrupted:
            study.tell(trial.number, state=TrialState.FAIL)
        finished = {self.axes.candidate(trial.params) for trial in finished_trials(study)}
        self._untried = dict.fromkeys(c for c in candidates if c not in finished)
        ahead = [self.axes.candidate(trial.params) for trial in interrupted if self.axes.whole(trial.params)]
        self._ahead = [c for c in dict.fromkeys([*ahead, *first]) if c in self._untried]
        self._num_started = len(finished)
        self._running: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> dict | str:
        if not self._untried or self._num_started >= self.num_trials:
            return Searcher.FINISHED
        trial = self._ask()
        self._running[trial_id] = trial
        self._num_started += 1
        candidate = self.axes.candidate(trial.params)
        trial.set_user_attr("cell", candidate.name)
        del self._untried[candidate]
        return asdict(candidate)

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        self._running[trial_id].report(result["val_accuracy"], result["num_images"])

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        if error or result is None:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.report(result["val_accuracy"], result["num_images"])  # Tune gives the last result here alone
        if result["last_rung"]:
            self.study.tell(trial, result["val_accuracy"])
        else:
            self.study.tell(trial, state=TrialState.PRUNED)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's own storage is the state, and a rerun is the way to go on."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as save."""

    def __getstate__(self) -> dict:
        return {}

    def _ask(self) -> optuna.Trial:
        if self._ahead:
            return self._ask_for(self._ahead.pop(0))
        if self.in_order:
            return self._ask_for(next(iter(self._untried)))
        trial = self.axes.ask(self.study)
        proposed = self.axes.candidate(trial.params)
        if proposed in self._untried:
            return trial
        self.study.tell(trial, state=TrialState.FAIL)
        return self._ask_for(min(self._untried, key=lambda c: self.axes.distance(proposed, c)))

    def _ask_for(self, candidate: Candidate) -> optuna.Trial:
        self.study.enqueue_trial(self.axes.params(candidate))
        return self.axes.ask(self.study)


class Axes:
    """The space as Optuna sees it: block, timestep and pooling are places on an axis, so that the sampler knows
    neighbours to be alike; a family of heads is a category, and its sizes are an axis that only it has."""

    def __init__(self, space: Space):
        self.values: dict[str, Sequence] = {
            "block": [block.name for block in space.blocks],
            "timestep": space.timesteps,
            "pooling": space.poolings,
        }
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

    def whole(self, params: dict) -> bool:
        """Whether a kill left a trial all its params."""
        names = {*self.values, "head"}
        if len(self.heads.get(params.get("head", ""), [])) > 1:
            names.add(f"{params['head']} size")
        return names == params.keys()

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

    def distance(self, a: Candidate, b: Candidate) -> float:
        """Places apart, each axis as a share of its length; another head counts as the whole of one."""

        def place(axis: str, candidate: Candidate) -> float:
            return self.values[axis].index(getattr(candidate, axis)) / len(self.values[axis])

        apart = sum(abs(place(axis, a) - place(axis, b)) for axis in self.values)
        return apart + (a.head != b.head)


def open_study(path: Path | None, sampler: str, seed: int) -> optuna.Study:
    """The sweep's study, kept in a journal file that optuna-dashboard opens too, or in memory. sampler: optuna (TPE)
    or random."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # TPESampler(group=True)
    storage = None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.create_study(
        storage=storage,
        direction="maximize",
        study_name="sweep",
        load_if_exists=True,
    )
    seed += len(study.get_trials(deepcopy=False))  # a search that goes on does not draw its first proposals again
    if sampler == "random":
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    return study


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that ran to the last rung or that ASHA stopped, in the order they were started."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
