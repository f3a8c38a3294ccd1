"""Every score and the accuracy of every site of a pair of network and images, kept so that ways to combine scores are
tried in seconds (benchmarks/consensus.py).

    python benchmarks/label_free_tables.py --pair shipped
    python benchmarks/label_free_tables.py --pair shipped_digits --dataset digits --num-train 1150 --num-val 287
    python sweeps/pretrain.py --family edm --dataset digits --no-autocast --channels 16 32 32 --steps 300
    python benchmarks/label_free_tables.py --pair edm_digits --backbone out/edm-digits/model --dataset digits \\
        --num-train 1150 --num-val 287

Accuracy: closed-form ridge on the training images, 1x1 and 2x2. Half of val chooses pooling and penalty, and the
accuracy is of the other half, the mean over 64 halves; regret as in benchmarks/label_free.py. Scores see several sets
of 256 training images. Cluster learnability, which takes as long as all others together and had 1 to 13 points of
regret on four pairs (docs/label-free.md), is left out.
"""

import json
from dataclasses import dataclass

import numpy as np
import record
import torch
import tyro
from label_free import NUM_LABELS, NUM_SHOWN, extract_draws, judge

from ddae import label_free, ridge
from ddae.pooling import pool
from ddae.scaling import Standardise
from sweeps.flags import ModelAndData
from sweeps.probing.cost import draws_of
from sweeps.probing.extractor import opened, read_features
from sweeps.probing.plan import set_up
from sweeps.probing.screening import NUM_RESAMPLES
from sweeps.probing.source import Need
from sweeps.probing.task import ProbeTask

NAMES = tuple(name for name in (*label_free.SCORES, *label_free.LABELLED) if name != "cluster_learnability")
NUM_SCORED = 384
"""Training images that every draw is taken from."""


@dataclass(frozen=True)
class Tables(ModelAndData):
    pair: str = "shipped"
    """Of the file in results/."""
    num_train: int = 1000
    """Training images that ridge is fitted on, at most."""
    num_val: int = 1000
    draws: int = 2


def main(config: Tables) -> None:
    torch.set_num_threads(1)
    task = set_up(config, (1, 2), ("linear",)).task
    fill(task, config)
    space, sites = task.space, [(block, t) for block in task.space.block_names for t in task.space.timesteps]
    scored = [score(task, *site, config.draws) for site in sites]
    accuracy, regret = judge([right(task, config, *site) for site in sites])
    tables = {
        name: [[float(f"{site[n][0][name]:.6g}") for site in scored] for n in range(config.draws)] for name in NAMES
    }
    table = {
        "blocks": space.block_names,
        "timesteps": space.timesteps,
        "accuracy": np.round(accuracy, 3).tolist(),
        "regret": np.round(regret, 3).tolist(),
        "scores": tables,
        "first_choices": {
            "without labels": [first_choices([site[n][1] for site in scored], False) for n in range(config.draws)],
            "with labels": [first_choices([site[n][1] for site in scored], True) for n in range(config.draws)],
        },
    }
    path = record.RESULTS / f"label_free_table_{config.pair}.json"
    path.write_text(json.dumps(table) + "\n")
    best = sites[accuracy.argmax()]
    print(f"{len(sites)} sites; the best is {best[0]}/{best[1]}, {accuracy.max():.1f} %; {path.name}")


def fill(task: ProbeTask, config: Tables) -> None:
    """Features in the store."""
    extractor = opened(task.source)
    for timestep, blocks in task.space.sites.items():
        for need in (Need(timestep, "train", config.num_train, blocks), Need(timestep, "val", config.num_val, blocks)):
            extractor.ensure(need)
        extract_draws(task, timestep, min(NUM_SCORED, task.num_train))


def first_choices(resampled: list[dict[str, np.ndarray]], with_labels: bool) -> list[int]:
    """The number of the site that ranks first, when all images are counted once, and in every resample."""
    members = [name for name in label_free.CONSENSUS if with_labels or name in label_free.SCORES]
    tables = {name: np.stack([site[name] for site in resampled], axis=1) for name in members}
    return label_free.standardised_sum(tables, members).argmax(1).tolist()


def score(task: ProbeTask, block: str, timestep: int, draws: int) -> list[tuple[dict[str, float], dict]]:
    """(every score, those of the consensus under resampled images) of a site, of each draw."""
    needs = draws_of(task, NAMES, NUM_SCORED)[task.space.timesteps.index(timestep)]
    features, found = read_features(opened(task.source), needs, block, NAMES), []
    for seed in range(draws):
        rows = np.random.default_rng(seed).permutation(min(NUM_SCORED, task.num_train))[:NUM_SHOWN]
        labels = torch.from_numpy(task.labels["train"][rows[:NUM_LABELS]])
        few, weights = features.of_images(rows), label_free.draw_images(len(rows), NUM_RESAMPLES)
        again = label_free.resample(few, weights, label_free.CONSENSUS, labels, task.num_classes)
        found.append((label_free.measure(few, NAMES, labels, task.num_classes), again))
    return found


def right(task: ProbeTask, config: Tables, block: str, timestep: int) -> np.ndarray:
    """bool [poolings and penalties, val images]: which are classified correctly."""
    extractor, found = opened(task.source), []
    needs = [Need(timestep, split, getattr(config, f"num_{split}"), (block,)) for split in ("train", "val")]
    for pooling in (1, 2):
        train, val = (pool(extractor.read(need, block), pooling).flatten(1) for need in needs)
        scale, (labels, truth) = Standardise(train), (extractor.labels(need) for need in needs)
        weight, bias = ridge.fit(scale(train), labels, task.num_classes)
        predicted = (torch.tensordot(scale(val), weight, 1) + bias).argmax(-1)
        found.append(truth == predicted.T)
    return torch.cat(found).numpy()


if __name__ == "__main__":
    main(tyro.cli(Tables, description=__doc__))
