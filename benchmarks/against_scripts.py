"""A grid of probes the way published scripts run it, against the same grid from features computed once.

python benchmarks/against_scripts.py     # about 12 minutes on one core

(a) One script, all cells: the network runs again every epoch, with fresh noise; one optimiser a cell, stepped in turn.
    This is how `linear.py --grid` of FutureXiang/ddae works, but for its random flips and crops.
(b) One script a cell: the whole network runs again every epoch for a single block, pooling and head, as in
    `finetune.py` of soumik-kanad/diffssl. Every cell is the same work, so two are run and their mean is multiplied.

Both are given what costs them least: no gradient through the network, val looked at once, no checkpoints. Their heads
follow ddae's recipe: Adam at 1e-3, cosine, no normalisation. Ours run the network once an image and timestep, write the
store and fit from it, on one thread too. Network, images, epochs, batches and their order are the same, and so are the
linear head's first weights: what is left between the script and our head `ddae` is the noise, fresh or fixed. `linear`
is our default, a logistic regression to convergence.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import record
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from ddae.backbones import Backbone, load_backbone
from ddae.datasets import Dataset, load_dataset
from ddae.features import FeatureKey, extract
from ddae.heads import HEADS, Head, StackedHead
from ddae.heads.mlp import mlp
from ddae.heads.recipes import DDAE
from ddae.heads.training import train
from ddae.pooling import pool
from ddae.probe import fit_probe, standard_error, to_maps
from storage.feature_store import FeatureStore
from sweeps.probing.space import Cell

SAME_RECIPE = "ddae"
"""Our head that is trained as the scripts' linear one; here for their epochs, however few steps these are."""
OURS = {"linear": SAME_RECIPE, "mlp": "mlp"}
"""The scripts' heads -> ours."""
MEASURED = (("up.0.0", 10, 1, "linear"), ("up.1.1", 60, 4, "mlp"))
"""Cells of (b) that are run."""
NETWORK_BATCH = 64
SHARD_ROWS = 512


@dataclass(frozen=True)
class AgainstScripts:
    backbone: str = "ddpm-fashion-mnist"
    num_train: int = 2048
    num_val: int = 512
    timesteps: tuple[int, ...] = (10, 30, 60)
    poolings: tuple[int, ...] = (1, 2, 4)
    epochs: int = 15
    batch_size: int = 128
    """Of the heads; the network runs in batches of 64, the fastest on a CPU, on both sides."""


class Material:
    """The network, the images and the blocks: all but the first, which leaves 12."""

    def __init__(self, config: AgainstScripts):
        self.config = config
        self.backbone: Backbone = load_backbone(config.backbone)
        self.dataset: Dataset = load_dataset("fashion-mnist-8k", self.backbone.image_size)
        self.rows = {
            "train": self.dataset.splits["train"][: config.num_train],
            "val": self.dataset.splits["val"][: config.num_val],
        }
        self.labels = {split: torch.from_numpy(self.dataset.images.labels[rows]) for split, rows in self.rows.items()}
        self.channels = {block.name: block.channels for block in self.backbone.blocks[1:]}


def rerun(material: Material, cells: Sequence[Cell]) -> np.ndarray:
    """Train one head a cell, running the whole network anew for every batch of every epoch.

    Returns which val images each gets right, bool [cells, num_val].
    """
    config = material.config
    heads = [new_head(cell, material) for cell in cells]
    optimisers = [torch.optim.Adam(head.parameters(), lr=1e-3) for head in heads]
    num_steps = config.epochs * -(-config.num_train // config.batch_size)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps) for optimiser in optimisers]
    rng = torch.Generator().manual_seed(0)
    for _ in range(config.epochs):
        for batch in torch.randperm(config.num_train, generator=rng).split(config.batch_size):
            features = noisy_features(material, material.rows["train"][batch], cells)
            for head, optimiser, schedule, x in zip(heads, optimisers, schedules, features, strict=True):
                optimiser.zero_grad()
                functional.cross_entropy(head(x), material.labels["train"][batch]).backward()
                optimiser.step()
                schedule.step()
    correct = []
    with torch.no_grad():
        for batch in torch.arange(config.num_val).split(config.batch_size):
            features = noisy_features(material, material.rows["val"][batch], cells)
            guesses = torch.stack([head(x).argmax(1) for head, x in zip(heads, features, strict=True)])
            correct.append(guesses == material.labels["val"][batch])
    return torch.cat(correct, 1).numpy()


def new_head(cell: Cell, material: Material) -> nn.Module:
    torch.manual_seed(0)
    width, classes = material.channels[cell.block] * cell.pooling**2, material.dataset.num_classes
    if cell.head == "linear":
        return nn.Linear(width, classes)
    return nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, classes))


def noisy_features(material: Material, rows: np.ndarray, cells: Sequence[Cell]) -> list[Tensor]:
    """Pooled, flat features under fresh noise, one a cell; the network runs to its last block whatever is asked."""
    grid = max(cell.pooling for cell in cells)
    wanted = [*dict.fromkeys([*(cell.block for cell in cells), material.backbone.blocks[-1].name])]
    maps: dict[tuple[int, str], list[Tensor]] = {}
    for timestep in dict.fromkeys(cell.timestep for cell in cells):
        for start in range(0, len(rows), NETWORK_BATCH):
            x0 = material.backbone.encode(material.dataset.images.read(rows[start : start + NETWORK_BATCH]))
            noise = torch.randn_like(x0)
            found = material.backbone.activations(x0, noise, timestep, wanted, lambda map: pool(map, grid))
            for name, map in found.items():
                maps.setdefault((timestep, name), []).append(map)
    whole = {key: torch.cat(parts) for key, parts in maps.items()}
    return [pool(whole[cell.timestep, cell.block], cell.pooling).flatten(1) for cell in cells]


def fill(material: Material, store: FeatureStore) -> None:
    """Every image once a timestep, all blocks, into the store."""
    key = FeatureKey(
        "", "", split_seed=0, val_fraction=0.2, noise_seed=0, draw=0, pooling=max(material.config.poolings)
    )
    for timestep, (split, rows) in itertools.product(material.config.timesteps, material.rows.items()):
        for start in range(0, len(rows), SHARD_ROWS):
            shard = rows[start : start + SHARD_ROWS]
            features = extract(
                material.backbone, material.dataset, shard, timestep, list(material.channels), key, NETWORK_BATCH
            )
            for block, values in features.items():
                store.write(f"t={timestep}/split={split}/block={block}", start, values)


def fit(material: Material, store: FeatureStore, cells: Sequence[Cell], heads: dict[str, str]) -> np.ndarray:
    """Each cell's head, by its name in `heads`, fitted from the store: bool [cells, num_val], as rerun."""
    correct = []
    for cell in cells:
        data = {}
        for split, labels in material.labels.items():
            views = store.read(f"t={cell.timestep}/split={split}/block={cell.block}", len(labels))
            data[split] = pool(to_maps(views, material.channels[cell.block]), cell.pooling), labels
        fitted = fit_probe(heads[cell.head], data["train"], data["val"], material.dataset.num_classes, seed=0)
        correct.append(fitted.correct)
    return np.stack(correct)


def fit_same(features: Tensor, labels: Tensor, num_classes: int, seed: int, *, epochs: int) -> StackedHead:
    """The head `ddae` without its least number of steps."""
    build = lambda: mlp(features[0].numel(), (), num_classes)  # noqa: E731
    return train(nn.Identity(), build, features, labels, seed, replace(DDAE, num_epochs=epochs, min_steps=1))


def timed(work: Callable[[], np.ndarray | None]) -> tuple[np.ndarray, np.ndarray | None]:
    """(wall and CPU seconds, what work() returns)."""
    started = np.array([time.perf_counter(), time.process_time()])
    result = work()
    return np.array([time.perf_counter(), time.process_time()]) - started, result


def row(seconds: np.ndarray, of_scripts: np.ndarray, correct: np.ndarray, scripts: np.ndarray) -> dict[str, float]:
    """Accuracies in percent with standard errors over the val images; those of the difference are paired."""
    best = float(correct.mean(1).max())
    an_image = correct.mean(0)
    difference = an_image - scripts.mean(0)
    num_val = len(an_image)
    return {
        "seconds": float(seconds[0]),
        "cpu_seconds": float(seconds[1]),
        "times_fewer_seconds": float(of_scripts[0] / seconds[0]),
        "times_fewer_cpu_seconds": float(of_scripts[1] / seconds[1]),
        "mean_accuracy": 100 * float(an_image.mean()),
        "mean_stderr": 100 * float(an_image.std() / num_val**0.5),
        "best_accuracy": 100 * best,
        "best_stderr": 100 * standard_error(best, num_val),
        "mean_minus_scripts": 100 * float(difference.mean()),
        "mean_minus_scripts_stderr": 100 * float(difference.std() / num_val**0.5),
    }


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'':<34}   seconds    fewer   mean accuracy    best accuracy   mean against the script's")
    for name, r in rows.items():
        numbers = (f"{r[f'{which}_accuracy']:5.1f} +- {r[f'{which}_stderr']:3.1f} %" for which in ("mean", "best"))
        against = f"{r['mean_minus_scripts']:+5.2f} +- {r['mean_minus_scripts_stderr']:.2f}"
        print(f"{name:<34} {r['seconds']:>9,.0f} {r['times_fewer_seconds']:>7.1f}x   {'   '.join(numbers)}   {against}")


def main(config: AgainstScripts) -> None:
    torch.set_num_threads(1)
    material = Material(config)
    HEADS[SAME_RECIPE] = Head(partial(fit_same, epochs=config.epochs), empty=HEADS["mlp"].empty)
    axes = list(material.channels), config.timesteps, config.poolings, list(OURS)
    cells = [Cell(*cell) for cell in itertools.product(*axes)]
    grid = [cell for cell in cells if (cell.pooling, cell.head) == (1, "linear")]
    sample = [Cell(*cell) for cell in MEASURED]
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(folder)
        filled, _ = timed(lambda: fill(material, store))
        heads = dict.fromkeys([SAME_RECIPE, "linear"])
        ours = {head: timed(lambda head=head: fit(material, store, grid, {"linear": head})) for head in heads}
        all_ours, all_correct = timed(lambda: fit(material, store, cells, OURS))
    runs = [timed(lambda cell=cell: rerun(material, [cell])) for cell in sample]
    script, script_correct = timed(lambda: rerun(material, grid))

    one_script = {"the script": row(script, script, script_correct, script_correct)}
    for head, (seconds, correct) in ours.items():
        one_script[f"ours, {head}"] = row(filled + seconds, script, correct, script_correct)
    all_scripts = np.mean([seconds for seconds, _ in runs], axis=0) * len(cells)
    run_correct = np.concatenate([correct for _, correct in runs])
    sample_correct = all_correct[[cells.index(cell) for cell in sample]]
    many_scripts = {
        f"the scripts, {len(runs)} of {len(cells)} run": row(all_scripts, all_scripts, run_correct, run_correct),
        "ours, all run": row(filled + all_ours, all_scripts, sample_correct, run_correct),
    }
    images = f"{config.num_train} train and {config.num_val} val images, {config.epochs} epochs"
    print(f"{images}; features of {len(config.timesteps)} timesteps, once: {filled[0]:.0f} s")
    show(f"(a) {len(grid)} cells, one script", one_script)
    show(f"(b) {len(cells)} cells, one script each; accuracies of the {len(runs)} cells that both ran", many_scripts)
    measured = {
        "images": images,
        "features_once_seconds": float(filled[0]),
        "script_run_seconds": [float(seconds[0]) for seconds, _ in runs],
        "script_runs": f"{len(runs)} of {len(cells)} measured, their mean times {len(cells)}",
    }
    record.write("against_scripts", {"measured": measured, "one script": one_script, "a script a cell": many_scripts})


if __name__ == "__main__":
    main(tyro.cli(AgainstScripts, description=__doc__))
