"""All blocks of one forward pass against the best of them, by the number of labels, in closed form.

    python benchmarks/fusion.py                  # Fashion-MNIST's 10,000 test images; six minutes with the passes

Ridge regression at one timestep, its penalty by leave-one-out. One block: the one that is best by leave-one-out. Joint:
all blocks, each standardised and divided by its width. Whitened: each block's principal axes at one variance. Stacked:
the joint classifier on what a ridge a block predicts of images that it has not seen. Plain: side by side, no weights.
"""

from dataclasses import dataclass, replace

import numpy as np
import record
import torch
import tyro
from torch import Tensor

from ddae.fusion import PENALTIES, gram, leave_one_out
from ddae.heads import find_head
from ddae.probe import classify
from ddae.scaling import Standardise
from ddae.streaming import Features
from sweeps.layer_noise import LayerNoise
from sweeps.probing.extractor import Extractor
from sweeps.probing.plan import set_up_search
from sweeps.probing.source import Need
from sweeps.probing.space import Cell


@dataclass(frozen=True)
class Fusion:
    dataset: str = "fashion-mnist"
    timestep: int = 30
    pooling: int = 2
    labels: tuple[int, ...] = (100, 300, 1000)
    num_draws: int = 5
    """Of the labelled images."""


def main(config: Fusion) -> None:
    torch.set_num_threads(1)
    setup = set_up_search(LayerNoise(dataset=config.dataset, timesteps=(config.timestep,), search_images="all"))
    labels = {split: torch.from_numpy(setup.dataset.labels(split)) for split in ("train", "test")}
    task = replace(setup.task, labels={**setup.task.labels, "test": labels["test"].numpy()})
    extractor, blocks = Extractor(task.source), task.space.block_names
    counts = {"train": config.num_draws * max(config.labels), "test": len(labels["test"])}
    maps: dict[str, dict[str, Tensor]] = {}
    for split, count in counts.items():
        extractor.ensure(Need(config.timestep, split, count, blocks))
        cells = [Cell(block, config.timestep, config.pooling, "ridge") for block in blocks]
        maps[split] = {each.block: as_maps(task.features(each, split, count)[0][config.pooling]) for each in cells}
    rows: dict[int, dict[str, dict[str, float]]] = {}
    for count in config.labels:
        right = [accuracies(maps, labels, slice(d * count, (d + 1) * count)) for d in range(config.num_draws)]
        rows[count] = {name: summary([each[name] - each["one block"] for each in right]) for name in right[0]}
        rows[count]["one block"] = summary([each["one block"] for each in right])
        print(count, *(f"{name} {100 * v['mean']:.1f} +- {100 * v['stderr']:.1f}" for name, v in rows[count].items()))
    record.write("fusion", {"accuracy of one block, gain of the others": rows})


def accuracies(maps: dict[str, dict[str, Tensor]], labels: dict[str, Tensor], rows: slice) -> dict[str, float]:
    """On the test images, of each method that is fitted on these training images."""
    train, test = ({b: m[rows] if s == "train" else m for b, m in maps[s].items()} for s in ("train", "test"))
    truth, channels = labels["train"][rows], [m.shape[1] for m in train.values()]
    num_classes = int(labels["test"].max()) + 1
    grams = {block: gram(m) for block, m in train.items()}
    best = max(grams, key=lambda block: max(score(grams[block], truth, num_classes, p) for p in PENALTIES))
    whole, asked = torch.cat(list(train.values()), 1), torch.cat(list(test.values()), 1)

    def of(head: str, seen: Tensor, held_out: Tensor, groups: list[int]) -> float:
        """At the penalty that is best on a fifth of the images that is left out of a first fit."""
        family, sizes = find_head(head, groups)
        first = family.fit(seen[len(seen) // 5 :], truth[len(seen) // 5 :], num_classes, 0, *sizes)
        rest = slice(len(seen) // 5)
        number = int((classify(first, seen[rest], num_classes) == truth[rest]).float().mean(1).argmax())
        fitted = family.fit(seen, truth, num_classes, 0, *sizes)
        found = classify(fitted.only(fitted.settings[number]), held_out, num_classes)[0]
        return float((found == labels["test"]).float().mean())

    return {
        "one block": of("ridge", train[best], test[best], []),
        "joint": of("joint-ridge", whole, asked, channels),
        "plain": of("ridge", whole, asked, []),
        "whitened": of("ridge", *whitened(train, test), []),
        "stacked": of("stacked", whole, asked, channels),
    }


def as_maps(features: Features) -> Tensor:
    """Held, as they are where no memory is named."""
    assert isinstance(features, Tensor)
    return features


def score(kernel: Tensor, truth: Tensor, num_classes: int, penalty: float) -> float:
    return float((leave_one_out(kernel, truth, num_classes, penalty).argmax(1) == truth).float().mean())


def whitened(train: dict[str, Tensor], test: dict[str, Tensor], num_axes: int = 256) -> tuple[Tensor, Tensor]:
    """The principal axes of each block, half as many as images at most, [N, axes, 1, 1]."""
    seen, asked = [], []
    for block, maps in train.items():
        scale = Standardise(maps)
        x = scale(maps).flatten(1)
        _, values, axes = torch.linalg.svd(x, full_matrices=False)
        kept = min(num_axes, len(x) // 2, int((values > 1e-4 * values[0]).sum()))
        onto = axes[:kept].T / values[:kept] * len(x) ** 0.5
        seen.append(x @ onto)
        asked.append(scale(test[block]).flatten(1) @ onto)
    return torch.cat(seen, 1)[..., None, None], torch.cat(asked, 1)[..., None, None]


def summary(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "stderr": float(np.std(values, ddof=1) / len(values) ** 0.5)}


if __name__ == "__main__":
    main(tyro.cli(Fusion, description=__doc__))
