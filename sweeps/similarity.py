"""How alike the features of blocks, timesteps, poolings and networks are, without a label: linear CKA.

    python sweeps/similarity.py                                    # the model and images that ship with it
    python sweeps/similarity.py --against timm:resnet18.a1_in1k torchvision:vit_b_16 --timesteps 0 60 250
    python sweeps/similarity.py --backbone ./my-model --against ./its-older-self --dataset ./my-images --poolings 1 4

512 images pass each network once a timestep, the same for all of them; what the store has is not extracted again. CKA
is estimated without bias from minibatches of 128 (Nguyen, Raghu & Kornblith 2021). Prints its means and writes a heat
map and a table.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sweeps import cli

if TYPE_CHECKING:
    from torch import Tensor

    from ddae.backbones import Backbone, Block
    from ddae.datasets import Dataset
    from sweeps.tuning.plan import Plan

BATCH_SIZE = 128
"""Images at most whose pairs are looked at together."""


@dataclass(frozen=True)
class Similarity(cli.ModelAndData):
    against: tuple[str, ...] = ()
    """Networks to compare with, each as --backbone takes it; with itself where there is none."""
    against_blocks: tuple[str, ...] = ()
    """Of theirs; all of them if not given."""
    against_timesteps: tuple[int, ...] = ()
    """In their own counting; by default up to nine of them."""
    poolings: tuple[int, ...] = (4,)
    """Average-pool each map to p x p numbers a channel, but for smaller maps; several are compared as well."""
    num_images: int = 512
    """So many training images, or all if there are fewer."""


class Feature(NamedTuple):
    """A row or column of the heat map."""

    network: str
    plan: "Plan"
    block: "Block"
    timestep: int
    pooling: int

    @property
    def name(self) -> str:
        return f"{self.network}/{self.block.name}/{self.timestep}/{self.pooling}"


def main(config: Similarity) -> None:
    from ddae.report import similarity_map
    from ddae.similarity import cka
    from storage.results import content_key
    from sweeps.tuning.estimate import estimate
    from sweeps.tuning.run import Sweep, check_cluster, ray_cluster
    from sweeps.tuning.space import Need

    networks = make_plans(config)
    num_images = min(config.num_images, networks[0][0].rungs[-1])
    needs = [[Need(t, "train", num_images, b) for t, b in plan.space.places.items()] for plan, _, _ in networks]
    passes = [plan.space.forward_passes(each) for (plan, _, _), each in zip(networks, needs, strict=True)]
    if config.dry_run:
        for network, cost in zip(networks, passes, strict=True):
            print(f"{network[0].backbone}\n{estimate(*network, cost, cost)}\n")
        return
    plans = [plan for plan, _, _ in networks]
    rows, *others = map(features_of, plans, labels([plan.backbone for plan in plans]))
    columns = [one for each in others for one in each] or rows
    made_of = [(one.plan.key.asdict(), one.name) for one in rows + columns]
    folder = config.out / f"similarity-{content_key(made_of=made_of, num_images=num_images)[:8]}"
    check_cluster()
    cli.check_writable(folder, plans[0].store)
    with ray_cluster():
        for plan, each, cost in zip(plans, needs, passes, strict=True):
            with Sweep(plan, cost) as sweep:
                sweep.fill(each)
    axes = [rows] if columns is rows else [rows, columns]
    every = cka(read([one for axis in axes for one in axis], num_images)).numpy()
    values = every[: len(rows), -len(columns) :]
    similarity_map(
        values,
        grouped(rows),
        grouped(columns),
        "linear CKA",
        f"{' against '.join(' '.join(networks_of(axis)) for axis in axes)}\n{num_images} images of {plans[0].name}",
        folder / "similarity.png",
    )
    write_table(values, rows, columns, folder / "similarity.csv")
    print(f"{summary(values, rows, columns)}\n")
    print(f"heat map  {folder / 'similarity.png'}\ntable     {folder / 'similarity.csv'}")


def make_plans(config: Similarity) -> list[tuple["Plan", "Backbone", "Dataset"]]:
    """Of --backbone, then of each of --against; a ValueError names the network that it is about."""
    from sweeps.tuning.plan import make_plan

    if config.num_images < 4:
        raise ValueError(f"num_images={config.num_images} must be 4 or more: CKA without bias compares pairs of pairs")
    if not config.against and (config.against_blocks or config.against_timesteps):
        raise ValueError("--against-blocks and --against-timesteps are of the networks of --against; name one there")
    theirs = replace(
        config, blocks=config.against_blocks, timesteps=config.against_timesteps, image_size=0, text_embedding=""
    )
    others = [replace(theirs, backbone=name) for name in config.against]
    plans = []
    for one in (config, *others):
        try:
            plans.append(make_plan(one, config.poolings))
        except ValueError as error:
            if not others or one.backbone in str(error):
                raise
            raise ValueError(f"{one.backbone}: {error}") from error
    return plans


def labels(names: list[str]) -> list[str]:
    """Without their folders, where that leaves them different."""
    short = [name.rstrip("/").rpartition("/")[2] for name in names]
    return short if len(set(short)) == len(set(names)) else names


def features_of(plan: "Plan", network: str) -> list[Feature]:
    """In the network's order inside a timestep; of a map that is too small for several poolings the first alone."""
    return [
        Feature(network, plan, block, timestep, pooling)
        for pooling in plan.space.poolings
        for timestep in plan.space.timesteps
        for block in plan.space.blocks
        if pooling <= block.size or pooling == min(plan.space.poolings)
    ]


def networks_of(axis: Sequence[Feature]) -> list[str]:
    return list(dict.fromkeys(one.network for one in axis))


def grouped(axis: Sequence[Feature]) -> list[tuple[str, str]]:
    """Of each what it shares with its neighbours in the heat map, and its block."""
    several = len(networks_of(axis)) > 1, len({one.pooling for one in axis}) > 1
    groups = []
    for network, plan, block, timestep, pooling in axis:
        noise = f"t = {timestep}, sigma {plan.sigmas[timestep]:.2g}"
        lines = network * several[0], noise, f"{pooling} x {pooling}" * several[1]
        groups.append(("\n".join(filter(None, lines)), block.name))
    return groups


def read(features: Sequence[Feature], num_images: int) -> Iterator[list["Tensor"]]:
    """Minibatches of the stored features, [n, D] each, of about the same number of images."""
    from ddae.pooling import pool
    from ddae.probe import to_maps
    from storage.feature_store import FeatureStore

    store = FeatureStore(features[0].plan.store)
    num_batches = -(-num_images // BATCH_SIZE)
    for start, stop in pairwise(num_images * i // num_batches for i in range(num_batches + 1)):
        yield [
            pool(to_maps(shards, block.channels), min(pooling, block.size)).flatten(1)
            for _, plan, block, timestep, pooling in features
            for shards in [store.read(plan.column(timestep, "train", block.name), stop, start)]
        ]


def write_table(values: np.ndarray, rows: Sequence[Feature], columns: Sequence[Feature], path: Path) -> None:
    """A line a pair."""
    axes = "network", "block", "timestep", "pooling"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*axes, *(f"against_{axis}" for axis in axes), "cka"])
        for a, line in zip(rows, values, strict=True):
            for b, value in zip(columns, line, strict=True):
                cells = [cell for one in (a, b) for cell in (one.network, one.block.name, one.timestep, one.pooling)]
                writer.writerow([*cells, f"{value:.4f}"])


def summary(values: np.ndarray, rows: Sequence[Feature], columns: Sequence[Feature]) -> str:
    """Means of CKA: of a network with itself over pairs that differ in one thing alone, with others also the pair that
    is most alike."""
    if columns is rows:
        cells = np.array([(one.block.name, str(one.timestep), str(one.pooling)) for one in rows])
        differ = cells[:, None] != cells
        alone = differ & (differ.sum(-1, keepdims=True) == 1)
        titles = "blocks at one timestep", "timesteps of one block", "poolings of one place"
        masks = {"all pairs": differ.any(-1), **dict(zip(titles, np.moveaxis(alone, -1, 0), strict=True))}
        return "\n".join(f"{title:23} {np.nanmean(values[at]):.3f}" for title, at in masks.items() if at.any())
    lines = []
    for network in networks_of(columns):
        at = [i for i, one in enumerate(columns) if one.network == network]
        row, column = divmod(int(np.nanargmax(values[:, at])), len(at))
        pair = f"{rows[row].name} and {columns[at[column]].name}"
        lines.append(
            f"{rows[0].network} and {network}: mean {np.nanmean(values[:, at]):.3f}; most alike are {pair}, "
            f"{values[row, at[column]]:.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, Similarity, __doc__)
