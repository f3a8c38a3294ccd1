"""One candidate, fitted on growing numbers of images."""

import time

import torch
from ray import tune

from ddae.probe import Candidate
from sweeps.tuning.evaluation import Features, evaluate, read_features
from sweeps.tuning.extraction import fill
from sweeps.tuning.plan import REDUCTION, Plan
from sweeps.tuning.space import Places


class ProbeTrial(tune.Trainable):
    """Tune's view of a candidate: one step a rung. Every step fits anew and close to convergence, so
    ASHA compares heads of equal maturity."""

    def setup(self, config: dict, plan: Plan, places: Places, extractors: list) -> None:
        torch.set_num_threads(1)
        self.plan, self.places, self.extractors = plan, places, extractors
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self.candidate = Candidate(**new_config)
        self.rung = 0
        return True

    def step(self) -> dict:
        num_images = self.plan.rungs[self.rung]
        self.fit_started = time.time()
        result = evaluate(self.plan, self.candidate, num_images, self._read)
        self.rung += 1
        return {
            "val_accuracy": result.val_accuracy,
            "num_images": num_images,
            "fit_started": self.fit_started,
            "fit_ended": time.time(),
            "resource": REDUCTION ** (self.rung - 1),
            "last_rung": self.rung == len(self.plan.rungs),
            "done": self.rung == len(self.plan.rungs),
        }

    def _read(self, split: str, num_images: int) -> Features:
        """The features, after waiting until the extractors have put those of both splits in the store."""
        if split == "train":
            fill(self.plan, self.extractors, self.plan.trial_needs(self.candidate, num_images, self.places))
            self.fit_started = time.time()
        return read_features(self.plan, self.candidate, split, num_images)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a rerun finds finished rungs in the ledger."""
