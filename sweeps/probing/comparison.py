"""Features of networks on the same images, compared with one another by linear CKA."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ddae.backbones import Block
from ddae.pooling import pool
from ddae.probe import to_maps
from ddae.report.figures import similarity_map
from ddae.similarity import cka
from ddae.units import rounded
from storage.feature_store import FeatureStore
from storage.ledger import content_key
from sweeps.findings.folder import answered, attempt
from sweeps.findings.table import write_csv
from sweeps.probing import cost
from sweeps.probing.source import FeatureSource, Need
from sweeps.probing.space import Space
from sweeps.probing.sweep import ProbeSweep, Setup, open_pool, set_up
from sweeps.probing.task import ProbeTask
from sweeps.search.task import Value
from sweeps.similarity import Similarity

BATCH_SIZE = 128
"""How many images are compared with one another at most."""


class Feature(NamedTuple):
    """A row or column of the heat map."""

    network: str
    source: FeatureSource
    block: Block
    timestep: int
    sigma: float
    pooling: int

    @property
    def name(self) -> str:
        return f"{self.network}/{self.block.name}/{self.timestep}/{self.pooling}"


@dataclass(frozen=True)
class Comparison:
    rows: tuple[Feature, ...]
    against: tuple[Feature, ...]
    """The features of the other networks; empty where the network is compared with itself."""
    cka: np.ndarray
    """[rows, columns], linear CKA."""
    num_images: int
    folder: Path
    incomplete: str = ""
    """Why the heat map could not be drawn, if so."""

    @property
    def columns(self) -> tuple[Feature, ...]:
        return self.against or self.rows

    @property
    def table(self) -> list[dict[str, Value]]:
        """One row a pair; pandas.DataFrame takes it."""
        return [
            {**axes_of(one), **axes_of(other, "against_"), "cka": float(value)}
            for one, values in zip(self.rows, self.cka, strict=True)
            for other, value in zip(self.columns, values, strict=True)
        ]

    @property
    def text(self) -> str:
        """The means, as a person reads them."""
        means = between_networks(self) if self.against else within_network(self)
        files = f"heat map  {self.folder / 'similarity.png'}\ntable     {self.folder / 'similarity.csv'}"
        return f"{means}\n\n{files}"


def compare(config: Similarity) -> Comparison:
    """Measure how similar all features are, and write heat map and table. Raises ValueError for a wrong flag."""
    tasks = [setup.task for setup in set_up_all(config)]
    num_images = min(config.num_images, tasks[0].num_train)
    names = short_names([task.source.backbone for task in tasks])
    rows, *others = (features_of(task.space, task.source, name) for task, name in zip(tasks, names, strict=True))
    against = tuple(feature for features in others for feature in features)
    made_of = [(one.source.key.asdict(), one.name) for one in (*rows, *(against or rows))]
    folder = config.out / f"similarity-{content_key(made_of=made_of, num_images=num_images)[:8]}"
    with open_pool(config, tasks[0].source, folder) as workers:
        for task in tasks:
            ProbeSweep(task, workers, num_passes(task, num_images)).fill(needs_of(task, num_images))
    values = cka(read([*rows, *against], num_images)).numpy()[: len(rows), -len(against or rows) :]
    found = Comparison(rows, against, values, num_images, folder)
    title = " against ".join(" ".join(networks_of(axis)) for axis in (rows, against) if axis)
    title += f"\n{num_images} images of {rows[0].source.name}"
    axes = grouped(rows), grouped(found.columns)
    with answered(found.text):
        write_csv(folder / "similarity.csv", found.table)
    draw = partial(similarity_map, values, *axes, "linear CKA", title)
    undrawn = attempt(folder / "similarity.png", draw)
    return replace(found, incomplete=undrawn)


def estimate(config: Similarity) -> str:
    """What the comparison will cost, for each network."""
    setups = set_up_all(config)
    texts = []
    for setup in setups:
        num_images = min(config.num_images, setups[0].task.num_train)
        passes = num_passes(setup.task, num_images)
        texts.append(f"{setup.task.source.backbone}\n{cost.estimate(*setup, passes, passes, num_images)}\n")
    return "\n".join(texts)


def set_up_all(config: Similarity) -> list[Setup]:
    """The network of --backbone, then each of --against; a ValueError names the network that it is about."""
    if config.num_images < 4:
        raise ValueError(f"num_images={config.num_images} must be 4 or more: CKA without bias compares pairs of pairs")
    if not config.against and (config.against_blocks or config.against_timesteps):
        raise ValueError("--against-blocks and --against-timesteps are of the networks of --against; name one there")
    theirs = replace(
        config, blocks=config.against_blocks, timesteps=config.against_timesteps, image_size=0, text_embedding=""
    )
    others = [replace(theirs, backbone=name) for name in config.against]
    setups = []
    for one in (config, *others):
        try:
            setups.append(set_up(one, config.poolings))
        except ValueError as error:
            if not others or one.backbone in str(error):
                raise
            raise ValueError(f"{one.backbone}: {error}") from error
    return setups


def needs_of(task: ProbeTask, num_images: int) -> list[Need]:
    return [Need(timestep, "train", num_images, blocks) for timestep, blocks in task.space.sites.items()]


def num_passes(task: ProbeTask, num_images: int) -> float:
    """Full forward passes of one image that the network's features need."""
    return task.space.forward_passes(needs_of(task, num_images))


def short_names(names: Sequence[str]) -> list[str]:
    """The names without their folders, where that leaves them different."""
    short = [name.rstrip("/").rpartition("/")[2] for name in names]
    return short if len(set(short)) == len(set(names)) else list(names)


def features_of(space: Space, source: FeatureSource, network: str) -> tuple[Feature, ...]:
    """Every feature in the network's order inside a timestep. A map that is too small for several of the poolings
    appears at the smallest alone."""
    return tuple(
        Feature(network, source, block, timestep, sigma, pooling)
        for pooling in space.poolings
        for timestep, sigma in space.sigmas.items()
        for block in space.blocks
        if pooling <= block.size or pooling == min(space.poolings)
    )


def read(features: Sequence[Feature], num_images: int) -> Iterator[list[Tensor]]:
    """Minibatches of the stored features, [n, D] each, of about the same number of images."""
    store = FeatureStore(features[0].source.store)
    num_batches = -(-num_images // BATCH_SIZE)
    for start, stop in pairwise(num_images * number // num_batches for number in range(num_batches + 1)):
        yield [read_one(store, feature, start, stop) for feature in features]


def read_one(store: FeatureStore, feature: Feature, start: int, stop: int) -> Tensor:
    """The images [start, stop), float32 [stop - start, D]."""
    block = feature.block
    need = Need(feature.timestep, "train", stop, (block.name,))
    maps = to_maps(store.read(feature.source.column(need, block.name), stop, start), block.channels)
    return pool(maps, min(feature.pooling, block.size)).flatten(1)


def axes_of(feature: Feature, prefix: str = "") -> dict[str, Value]:
    axes: dict[str, Value] = {
        "network": feature.network,
        "block": feature.block.name,
        "timestep": feature.timestep,
        "pooling": feature.pooling,
    }
    return {f"{prefix}{name}": value for name, value in axes.items()}


def networks_of(axis: Sequence[Feature]) -> list[str]:
    return list(dict.fromkeys(feature.network for feature in axis))


def grouped(axis: Sequence[Feature]) -> list[tuple[str, str]]:
    """(what the feature shares with its neighbours in the heat map, its block)."""
    several_networks, several_poolings = len(networks_of(axis)) > 1, len({one.pooling for one in axis}) > 1
    groups = []
    for one in axis:
        noise = f"t = {one.timestep}, sigma {rounded(one.sigma)}"
        lines = one.network * several_networks, noise, f"{one.pooling} x {one.pooling}" * several_poolings
        groups.append(("\n".join(filter(None, lines)), one.block.name))
    return groups


def within_network(found: Comparison) -> str:
    """Mean CKA over the pairs of a network's features, and over those that differ in one thing alone."""
    cells = np.array([(one.block.name, str(one.timestep), str(one.pooling)) for one in found.rows])
    differ = cells[:, None] != cells
    alone = differ & (differ.sum(-1, keepdims=True) == 1)
    titles = "blocks at one timestep", "timesteps of one block", "poolings of one site"
    masks = {"all pairs": differ.any(-1), **dict(zip(titles, np.moveaxis(alone, -1, 0), strict=True))}
    return "\n".join(f"{title:23} {np.nanmean(found.cka[at]):.3f}" for title, at in masks.items() if at.any())


def between_networks(found: Comparison) -> str:
    """For each other network the mean CKA, and the pair that is most alike."""
    lines = []
    for network in networks_of(found.against):
        at = [number for number, one in enumerate(found.against) if one.network == network]
        values = found.cka[:, at]
        row, column = divmod(int(np.nanargmax(values)), len(at))
        pair = f"{found.rows[row].name} and {found.against[at[column]].name}"
        lines.append(
            f"{found.rows[0].network} and {network}: mean {np.nanmean(values):.3f}; most alike are {pair}, "
            f"{values[row, column]:.3f}"
        )
    return "\n".join(lines)
