"""Which score ranks the sites of a network as a full probe does: without a label, or with a hundred.

    python benchmarks/label_free.py                                  # the shipped model and images
    python benchmarks/label_free.py --pair fashion_mnist --dataset fashion-mnist --poolings 1 2
    python sweeps/pretrain.py --family edm --dataset digits --no-autocast --channels 32 64 64 --steps 800
    python benchmarks/label_free.py --pair edm_digits --dataset digits --folds 5 --backbone out/edm-digits/model
    python sweeps/pretrain.py --family edm --no-autocast --channels 16 32 64 --steps 3000
    python benchmarks/label_free.py --pair edm_fashion_mnist --backbone out/edm-fashion-mnist/model --poolings 1 2
    python benchmarks/label_free.py --pair dit --backbone benchmarks/networks/dit-fashion-mnist --poolings 1 2
    python benchmarks/label_free.py --pair flow --backbone benchmarks/networks/flow-unet-fashion-mnist --poolings 1 2
    python benchmarks/efficientnet.py
    python benchmarks/label_free.py --pair efficientnet --backbone timm:out/efficientnet-lite0 --poolings 1 2

Truth: `linear` is fitted on all training images at every (block, timestep) and pooling. Half of val chooses pooling and
penalty, and the accuracy is of the other half, the mean over 64 halves. Scores see two noise draws of training images
(of a classifier: the images and a view of them), averaged over the block; every seed draws other images.

Regret: accuracy on the other half of the site that the choosing half likes best minus that of the score's first
choice, in points; it can be below 0. Stable: the least number of images from which on two seeds rank the sites with a
Spearman of 0.95.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from multiprocessing import get_context

import numpy as np
import record
import torch
import tyro
from matplotlib.figure import Figure
from search_cost import wait

from ddae import label_free
from ddae.heads import find_head
from storage.ledger import Ledger, content_key
from sweeps.flags import ModelAndData
from sweeps.probing.cost import draws_of
from sweeps.probing.extractor import opened, read_features
from sweeps.probing.plan import set_up
from sweeps.probing.source import Need, as_turned
from sweeps.probing.space import Cell
from sweeps.probing.task import ProbeTask
from sweeps.search.task import pack, unpack

SECOND_DRAW = 2048
"""Training images, at most, that have a second noise draw here, or a view: of them every seed draws its own."""
NUM_IMAGES = 16, 32, 64, 128, 256, 512, 1024
NUM_SHOWN = 256
"""Images that the table and the figure are of."""
NUM_LABELS = 100
NUM_HALVINGS = 32
UNLABELLED = tuple(name for name in label_free.CONSENSUS if name in label_free.SCORES)
CONSENSUSES = {
    "alignment + uniformity": ("alignment", "uniformity"),
    "consensus": UNLABELLED,
    **{f"consensus + {name}": (*UNLABELLED, name) for name in label_free.LABELLED},
}
"""What rank() is given."""


@dataclass(frozen=True)
class LabelFree(ModelAndData):
    pair: str = "default"
    """Of the files in results/."""
    poolings: tuple[int, ...] = (1, 2, 4)
    num_train: int = 4_800
    """Training images that the probe is fitted on, at most."""
    num_val: int = 3_000
    """Val images that judge it, at most."""
    folds: int = 0
    """Judge by so many folds of train and val together, where val is small; 0 judges on val."""
    seeds: int = 5
    processes: int = 2


def main(config: LabelFree) -> None:
    with ProcessPoolExecutor(config.processes, get_context("spawn"), torch.set_num_threads, (1,)) as workers:
        task, right = prepare(config, workers)
        sites = [(timestep, block) for timestep, blocks in task.space.sites.items() for block in blocks]
        jobs = [workers.submit(measure, task, *site, config.seeds) for site in sites]
        measured = wait("scores", jobs)
    accuracy, regret = judge([right[site] for site in sites])
    merits = to_merits(measured)
    shape = len(task.space.timesteps), -1
    rows = {name: trust(values, accuracy, regret, shape) for name, values in merits.items()}
    best = sites[accuracy.argmax()]
    print(
        f"{len(sites)} sites, {task.num_train:,} training images; the best is {best[1]}/{best[0]}, "
        f"{accuracy.max():.1f} %, the median {np.median(accuracy):.1f} %; {config.seeds} seeds, {NUM_SHOWN} images\n"
        f"{'':<24} Spearman  in a timestep  regret  worst  top 5  stable  first choice"
    )
    for name, row in rows.items():
        first = sites[merits[name][NUM_SHOWN][0].argmax()]
        print(LINE.format(name, *row.values(), f"{first[1]}/{first[0]}"))
    results = {"sites": len(sites), "best": best, "accuracy": accuracy.max(), "scores": rows}
    record.write(f"label_free_{config.pair}", results)
    draw({name: merits[name][NUM_SHOWN][0] for name in merits}, accuracy, rows, task, config.pair)


LINE = "{:<24} {:8.2f}  {:13.2f}  {:6.2f}  {:5.2f}  {:5.2f}  {:>6}  {}"


def prepare(config: LabelFree, workers: ProcessPoolExecutor) -> tuple[ProbeTask, dict[tuple[int, str], np.ndarray]]:
    """Features in the store, and for every site bool [poolings and penalties, images]: which its probes get right."""
    task = set_up(config, config.poolings, ("linear",)).task
    kept = {"train": config.num_train, "val": config.num_val}
    labels = {split: all_labels[: kept[split]] for split, all_labels in task.labels.items()}
    task = replace(task, labels=labels, rungs=(len(labels["train"]),))
    wait("extraction", [workers.submit(extract, task, *site) for site in task.space.sites.items()])
    cells = task.space.cells
    probed = wait("probes", [workers.submit(probe, task, cell, config.folds) for cell in cells])
    right: dict[tuple[int, str], list[np.ndarray]] = {}
    for cell, bits in zip(cells, probed, strict=True):
        right.setdefault((cell.timestep, cell.block), []).append(bits)
    return task, {site: np.concatenate(bits) for site, bits in right.items()}


def extract(task: ProbeTask, timestep: int, blocks: tuple[str, ...]) -> None:
    extractor = opened(task.source)
    extractor.ensure(Need(timestep, "train", task.num_train, blocks))
    extractor.ensure(Need(timestep, "val", task.num_val, blocks))
    extract_draws(task, timestep, min(SECOND_DRAW, task.num_train))


def extract_draws(task: ProbeTask, timestep: int, num_images: int) -> None:
    """What the scores read besides the first noise draw."""
    needs = draws_of(task, label_free.SCORES, num_images)[task.space.timesteps.index(timestep)]
    opened(task.source).ensure(needs["second"])
    opened(as_turned(task.source)).ensure(needs["turned"])


def probe(task: ProbeTask, cell: Cell, folds: int) -> np.ndarray:
    """bool [penalties, images]: which of val, or with folds of train and val, the cell's head classifies correctly."""
    ledger = Ledger(f"{task.source.store}/label_free")
    head, sizes = find_head(cell.head)
    num_train, num_val = task.num_train, task.num_val
    key = content_key(
        features=task.source.key.asdict(),
        cell=cell.name,
        num_images=(num_train, num_val),
        folds=folds,
        version=head.version,
    )
    if (kept := ledger.get(key)) is None:
        splits = task.features(cell, "train", num_train), task.features(cell, "val", num_val)
        features = torch.cat([pooled[cell.pooling] for pooled, _ in splits])
        labels = torch.cat([its_labels for _, its_labels in splits])
        fold = torch.arange(num_train + num_val)
        fold = fold % folds if folds else (fold >= num_train).int() - 1
        right = []
        for judged in range(max(1, folds)):
            fitted = head.fit(features[fold != judged], labels[fold != judged], task.num_classes, 0, *sizes)
            right.append((fitted(features[fold == judged]).argmax(-1) == labels[fold == judged]).numpy())
        bits = np.concatenate(right, axis=1)
        kept = {"shape": bits.shape, "right": pack(bits.ravel())}
        ledger.put(key, kept)
    return unpack(kept["right"]).reshape(kept["shape"])


def judge(right: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(accuracy, regret) of every site, in per cent and points."""
    num_images = right[0].shape[1]
    accuracy, regret = np.zeros((2, len(right)))
    for halving in range(NUM_HALVINGS):
        order = np.random.default_rng(halving).permutation(num_images)
        halves = order[: num_images // 2], order[num_images // 2 :]
        for chooses, judges in (halves, halves[::-1]):
            means = [bits[:, chooses].mean(1) for bits in right]
            judged = np.array([bits[mean.argmax(), judges].mean() for bits, mean in zip(right, means, strict=True)])
            accuracy += judged
            regret += judged[np.argmax([mean.max() for mean in means])] - judged
    return tuple(100 * total / (2 * NUM_HALVINGS) for total in (accuracy, regret))


def measure(task: ProbeTask, timestep: int, block: str, seeds: int) -> dict[tuple[int, int], dict[str, float]]:
    """(number of images, seed) -> score -> value of a site; with NUM_LABELS labels, the mean of both draws."""
    num_images = min(SECOND_DRAW, task.num_train)
    needs = draws_of(task, label_free.SCORES, num_images)[task.space.timesteps.index(timestep)]
    features, values = read_features(opened(task.source), needs, block, label_free.SCORES), {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(num_images)
        labels = torch.from_numpy(task.labels["train"][order[:NUM_LABELS]])
        for num in NUM_IMAGES:
            few = labels if num == NUM_SHOWN else None
            names = (*label_free.SCORES, *(label_free.LABELLED if num == NUM_SHOWN else ()))
            values[num, seed] = label_free.measure(features.of_images(order[:num]), names, few, task.num_classes)
    return values


def to_merits(measured: list[dict[tuple[int, int], dict[str, float]]]) -> dict[str, dict[int, np.ndarray]]:
    """score -> number of images -> [seeds, sites], higher is better; consensuses as well."""
    merits: dict[str, dict[int, list[np.ndarray]]] = {}
    every = {**label_free.SCORES, **label_free.LABELLED}
    for num, seed in measured[0]:
        cells = [site[num, seed] for site in measured]
        found = {name: every[name].merit(np.array([cell[name] for cell in cells])) for name in cells[0]}
        found |= {name: label_free.rank(cells, members).numpy() for name, members in CONSENSUSES.items()
                  if set(members) <= set(cells[0])}  # fmt: skip
        for name, values in found.items():
            merits.setdefault(name, {}).setdefault(num, []).append(values)
    return {name: {num: np.stack(rows) for num, rows in sizes.items()} for name, sizes in merits.items()}


def trust(
    merits: dict[int, np.ndarray], accuracy: np.ndarray, regret: np.ndarray, shape: tuple[int, int]
) -> dict[str, float | int | None]:
    """Of a score on NUM_SHOWN images, the mean over the seeds."""
    shown = merits[NUM_SHOWN]
    columns = [list(zip(row.reshape(shape), accuracy.reshape(shape), strict=True)) for row in shown]
    best = set(np.argsort(-accuracy)[:5])
    lost = regret[shown.argmax(1)]
    stable = None
    for num in sorted(merits, reverse=True):
        alike = [label_free.spearman(a, b) for a, b in combinations(merits[num], 2)]
        if len(merits) == 1 or np.mean(alike) < 0.95:
            break
        stable = num
    return {
        "spearman": np.mean([label_free.spearman(row, accuracy) for row in shown]),
        "within_timestep": np.mean([label_free.spearman(*column) for row in columns for column in row]),
        "regret": lost.mean(),
        "worst": lost.max(),
        "top_5": np.mean([len(best & set(np.argsort(-row)[:5])) / 5 for row in shown]),
        "stable": stable or "-",
    }


def draw(
    merits: dict[str, np.ndarray], accuracy: np.ndarray, rows: dict[str, dict], task: ProbeTask, pair: str
) -> None:
    """Score against accuracy, a panel a score, a point a site."""
    names = list(merits)
    figure = Figure(figsize=(11, 2.3 * -(-len(names) // 4)), layout="constrained")
    noise = np.repeat(np.arange(len(task.space.timesteps)), len(task.space.blocks))
    panels = figure.subplots(-(-len(names) // 4), 4).flat
    for axes in panels[len(names) :]:
        axes.remove()
    for axes, name in zip(panels, names, strict=False):
        values, first = merits[name], merits[name].argmax()
        axes.scatter(values, accuracy, c=noise, cmap="viridis", s=9)
        axes.plot(values[first], accuracy[first], "o", mfc="none", mec="red", ms=9)
        axes.set_title(f"{name}: {rows[name]['spearman']:.2f}, regret {rows[name]['regret']:.2f}", fontsize=8)
        axes.tick_params(labelsize=6)
    figure.supxlabel("score, its better side to the right; dark is weak noise, the ring its first choice", fontsize=8)
    figure.supylabel("val accuracy (%)", fontsize=8)
    figure.savefig(record.RESULTS / f"label_free_{pair}.png", dpi=130)


if __name__ == "__main__":
    main(tyro.cli(LabelFree, description=__doc__))
