"""One candidate, fitted on so many images."""

import time

import torch
from ray import tune

from ddae.probe import Candidate
from sweeps.tuning.evaluation import evaluate
from sweeps.tuning.extractor import Warnings
from sweeps.tuning.plan import Plan


class ProbeTrial(tune.Trainable):
    """Tune's view of a fit, which is to convergence: heads are compared at equal maturity. Its features stand in the
    store."""

    def setup(self, config: dict, plan: Plan) -> None:
        torch.set_num_threads(1)
        self.plan, self.warned = plan, Warnings()
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        cell = dict(new_config)
        self.num_images = cell.pop("num_images")
        self.candidate = Candidate(**cell)
        return True

    def step(self) -> dict:
        """lost: which features were gone. mistake: what no retry mends, in one line."""
        started, accuracy, lost, mistake = time.time(), 0.0, "", ""
        try:
            accuracy = evaluate(self.plan, self.candidate, self.num_images).val_accuracy
        except LookupError as error:
            lost = str(error)
        except (ValueError, OSError) as error:
            mistake = str(error)
        return {
            "val_accuracy": accuracy,
            "lost": lost,
            "mistake": mistake,
            "warnings": self.warned.drain(),
            "fit_started": started,
            "fit_ended": time.time(),
            "done": True,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a rerun finds what was fitted in the ledger."""
