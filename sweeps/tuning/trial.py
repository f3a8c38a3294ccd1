"""One candidate, fitted on so many images."""

import time

import torch
from ray import tune

from ddae.probe import Candidate
from sweeps.tuning.evaluation import Features, evaluate, read_features
from sweeps.tuning.extraction import fill
from sweeps.tuning.plan import Plan
from sweeps.tuning.space import Places


class ProbeTrial(tune.Trainable):
    """Tune's view of a fit, which is to convergence: heads are compared at equal maturity."""

    def setup(self, config: dict, plan: Plan, places: Places, extractors: list) -> None:
        torch.set_num_threads(1)
        self.plan, self.places, self.extractors = plan, places, extractors
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        cell = dict(new_config)
        self.num_images = cell.pop("num_images")
        self.candidate = Candidate(**cell)
        return True

    def step(self) -> dict:
        """mistake: what no retry mends, in one line."""
        self.fit_started = time.time()
        accuracy, mistake = 0.0, ""
        try:
            accuracy = evaluate(self.plan, self.candidate, self.num_images, self._read).val_accuracy
        except ConnectionError:
            raise
        except (ValueError, OSError) as error:
            mistake = str(getattr(error, "cause", error))
        return {
            "val_accuracy": accuracy,
            "mistake": mistake,
            "fit_started": self.fit_started,
            "fit_ended": time.time(),
            "done": True,
        }

    def _read(self, split: str, num_images: int) -> Features:
        """The features, after waiting until the extractors have put those of both splits in the store."""
        if split == "train":
            fill(self.plan, self.extractors, self.plan.trial_needs(self.candidate, num_images, self.places))
            self.fit_started = time.time()
        return read_features(self.plan, self.candidate, split, num_images)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a rerun finds what was fitted in the ledger."""
