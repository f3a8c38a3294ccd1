"""What fusion buys: the answer of fuse.py against that of its sweep, on the same test images, over seeds.

    python benchmarks/fused_answers.py                    # the shipped pair; goes on where it was stopped
    python benchmarks/fused_answers.py --pair fashion_mnist --dataset fashion-mnist

A seed decides which images are val (--data-seed), what the searches try, and how heads begin. What at most 1, 2 and 4
passes an image buy is chosen on val, as fuse.py does; then each answer is fitted on all training images and judged on
all test images, in paired differences to the single cell. An answer that falls back to that cell gains 0.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import record
import tyro
from search_cost import mean_and_error

from ddae.fusion import at_timesteps
from sweeps import fuse, layer_noise
from sweeps.fusing.findings import choose
from sweeps.fusing.sweep import Setup, set_up
from sweeps.probing.refit import refit
from sweeps.probing.space import Cell

PASSES = 1, 2, 4


@dataclass(frozen=True)
class FusedAnswers:
    backbone: str = layer_noise.LayerNoise.backbone
    dataset: str = layer_noise.LayerNoise.dataset
    weights: str = ""
    data_root: str = "data"
    seeds: int = 5
    out: Path = Path("out/fused-answers")
    store: str = "out/store"
    pair: str = "default"
    """The file is results/fused_answers_<pair>.json."""


@dataclass(frozen=True)
class Judged:
    answer: str
    passes: float
    """Full forward passes an image."""
    num_features: int
    gain_on_val: float
    """Points over the single cell."""
    gain_on_test: float
    stderr: float
    """Paired, over the test images."""


def main(config: FusedAnswers) -> None:
    if config.seeds < 2:
        raise SystemExit(f"seeds={config.seeds} has no standard error; give 2 or more")
    runs = []
    for seed in range(config.seeds):
        kept = config.out / f"{config.pair}-{seed}.json"
        if not kept.exists():
            judged = json.dumps(judge(config, seed))
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(judged)
        runs.append(json.loads(kept.read_text()))
        print(f"seed {seed}: single {runs[-1]['single']}, {100 * runs[-1]['accuracy']:.2f} % of the test images")
        for passes in PASSES:
            one = Judged(**runs[-1]["sets"][f"at most {passes}"])
            on_val = f"({one.gain_on_val:+.2f} on val)"
            print(f"  at most {passes} passes: {one.gain_on_test:+.2f} +- {one.stderr:.2f} {on_val} {one.answer}")
    gains = {f"at most {n}": [run["sets"][f"at most {n}"]["gain_on_test"] for run in runs] for n in PASSES}
    means = {name: mean_and_error(each) for name, each in gains.items()}
    for name, (mean, stderr) in means.items():
        print(f"{name} passes: {mean:+.2f} +- {stderr:.2f} points over the single cell, {len(runs)} seeds")
    record.write(f"fused_answers_{config.pair}", {"gain": means, "seeds": runs})


def judge(config: FusedAnswers, seed: int) -> dict:
    """Both sweeps with one seed, and their answers on the test images."""
    flags = layer_noise.LayerNoise(
        backbone=config.backbone, dataset=config.dataset, weights=config.weights, data_root=config.data_root,
        data_seed=seed, seed=seed, out=config.out / config.pair, store=config.store, atlas=False,
    )  # fmt: skip
    folder = layer_noise.sweep(flags).folder
    setup = set_up(fuse.Fuse(sweep=folder, out=flags.out, max_passes=max(PASSES)))
    found = fuse.sweep(setup.config, setup)
    right = {each.cell: correct(setup, each.cell) for each in found.best}
    single, sets = found.best[0], {}
    for most in PASSES:
        allowed = [each for each in found.best[1:] if len(at_timesteps(each.cell.members)) <= most]
        chosen = choose(found.task, [single, *allowed])
        gained = 100 * (right[chosen.cell].astype(float) - right[single.cell])
        stderr = float(gained.std() / len(gained) ** 0.5)
        sets[f"at most {most}"] = asdict(
            Judged(
                chosen.cell.name, chosen.passes, chosen.num_features, 100 * chosen.gain, float(gained.mean()), stderr
            )
        )
    return {"single": single.cell.name, "accuracy": float(right[single.cell].mean()), "sets": sets}


def correct(setup: Setup, cell: Cell) -> np.ndarray:
    """bool [num_test], the cell fitted on all training images."""
    task = setup.probing if isinstance(cell, Cell) else setup.task([cell.members])
    return refit(task, cell, setup.dataset, ("test",)).correct("test")


if __name__ == "__main__":
    main(tyro.cli(FusedAnswers, description=__doc__))
