"""From flags to a plan: what is searched, on what, and all that a worker needs to know about it."""

import difflib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ddae.backbones import SHIPPED, Backbone, load_backbone
from ddae.datasets import DATASETS, Dataset, load_dataset
from ddae.features import FeatureKey, check_timestep, extract, width
from ddae.heads import HEADS
from ddae.probe import Candidate
from storage.results import content_key
from sweeps.cli import ModelAndData
from sweeps.tuning.space import Space

PROBE_VERSION = 1
"""Raise it when the same candidate would be fitted differently."""
VAL_FRACTION = 0.2
REDUCTION = 4
"""Each rung has about so many times the images of the one before, and ASHA lets about one candidate in so many on."""
NUM_LABEL_FREE = 256
"""Images of the label-free scores."""


@dataclass(frozen=True)
class Plan:
    """A sweep as its workers see it."""

    name: str
    """The dataset's name, or its folder's."""
    backbone: str
    dataset: str
    data_root: str
    device: str
    store: str
    key: FeatureKey
    space: Space
    rungs: tuple[int, ...]
    """Numbers of training images, growing; the last is all of them."""
    labels: dict[str, np.ndarray]
    """int64, of train and val, in the order of the rows."""
    num_classes: int
    num_label_free: int
    """Images of the label-free scores."""
    sigmas: dict[int, float]
    """timestep -> noise-to-signal ratio."""
    seed: int

    def folder(self, draw: int = 0) -> str:
        """The store's folder of all features that differ in split, timestep and block alone."""
        return f"{self.name}/{content_key(**{**self.key.asdict(), 'draw': draw})[:16]}"

    def column(self, timestep: int, split: str, block: str, draw: int = 0) -> str:
        """The folder of one block's features in the store."""
        return f"{self.folder(draw)}/t={timestep}/split={split}/block={block}"

    def result_key(self, candidate: Candidate, num_images: int) -> str:
        return content_key(
            features=self.key.asdict(),
            candidate=candidate.name,
            num_images=num_images,
            seed=self.seed,
            version=PROBE_VERSION,
        )

    @property
    def screen_pooling(self) -> int:
        """Of the ridge probes that look at every (block, timestep) first."""
        return min(self.space.poolings)

    @property
    def num_val(self) -> int:
        return len(self.labels["val"])

    @property
    def bytes_per_image(self) -> int:
        """Of one timestep in the store."""
        return sum(2 * width(block, self.key.pooling) for block in self.space.blocks)

    def forward_passes(self, images_at: dict[int, int]) -> float:
        """Full forward passes of one image that a search spent whose trials used images_at[timestep] training images
        at most; each timestep also costs the val images and the label-free scores' second noise draw."""
        return self.space.pass_share * sum(n + self.num_val + self.num_label_free for n in images_at.values())

    @property
    def passes(self) -> tuple[int, int]:
        """Full forward passes that a sweep runs at least (a first look at everything) and at most."""
        first_look, whole = max(self.rungs[0], self.num_label_free), self.rungs[-1]
        least, most = (self.forward_passes(dict.fromkeys(self.space.timesteps, n)) for n in (first_look, whole))
        return round(least), round(most)

    @property
    def grid_passes(self) -> float:
        """Full forward passes of the exhaustive grid: every image once at every timestep."""
        return self.space.pass_share * len(self.space.timesteps) * (self.rungs[-1] + self.num_val)


def sweep_folder(out: Path, plan: Plan, search: str) -> Path:
    """out/layer-noise-<hash of all that decides the sweep's trials, but for how many there are>."""
    space = plan.space
    key = content_key(
        features=plan.key.asdict(),
        blocks=[block.name for block in space.blocks],
        timesteps=space.timesteps,
        poolings=space.poolings,
        heads=space.heads,
        rungs=plan.rungs,
        search=search,
        seed=plan.seed,
        version=PROBE_VERSION,
    )
    return out / f"layer-noise-{key[:8]}"


def make_plan(
    config: ModelAndData,
    poolings: Sequence[int] = (1,),
    heads: Sequence[str] | None = None,
    seed: int = 0,
    whole: bool = False,
) -> tuple[Plan, Backbone, Dataset]:
    """Load the model and the images and check every name and number against them; a ValueError names what is wrong.

    heads: None where none is to be fitted. whole: fit on all training images at once instead of on growing numbers.
    """
    for name, values in (("timesteps", config.timesteps), ("poolings", poolings), ("heads", heads)):
        if values is not None and not values:
            raise ValueError(f"--{name} is empty; give at least one, or leave the flag out for the default")
    heads = heads or ()
    for head in heads:
        check_name("head", head, HEADS)
    for pooling in poolings:
        if pooling < 1 or max(4, *poolings) % pooling:
            raise ValueError(f"pooling={pooling} does not follow exactly from a coarser grid; choose among 1, 2, 4, 8")
    if "://" in config.store:
        raise ValueError(
            f"store={config.store!r} is an address; only folders are supported yet (a shared one on a cluster)"
        )
    if config.data_seed < 0 or seed < 0:
        raise ValueError(f"seed={min(config.data_seed, seed)} must be 0 or more")
    on_cluster = "RAY_ADDRESS" in os.environ
    device = config.device if on_cluster and config.device != "auto" else choose_device(config.device)
    backbone = load_backbone(config.backbone, "cpu" if on_cluster else device)
    names = [block.name for block in backbone.blocks]
    for name in config.blocks:
        check_name("block", name, names)
    for timestep in config.timesteps:
        check_timestep(backbone, timestep)
    blocks = tuple(block for block in backbone.blocks if not config.blocks or block.name in config.blocks)
    largest = max(block.size for block in blocks)
    for pooling in poolings:
        if pooling > largest:
            raise ValueError(f"pooling={pooling} is larger than every chosen block's map; the largest is {largest}")
    dataset = load_dataset(config.dataset, backbone.image_size, config.data_root, config.data_seed, VAL_FRACTION)
    labels = {split: dataset.labels(split) for split in ("train", "val")}
    num_train = len(labels["train"])
    key = FeatureKey(
        backbone.fingerprint,
        dataset.images.fingerprint,
        split_seed=config.data_seed,
        val_fraction=VAL_FRACTION,
        noise_seed=config.data_seed,
        draw=0,
        pooling=max(4, *poolings),
    )
    timesteps = tuple(sorted(set(config.timesteps)))
    space = Space(blocks, timesteps, tuple(sorted(set(poolings))), tuple(dict.fromkeys(heads)))
    plan = Plan(
        name=Path(config.dataset).resolve().name or "images",
        backbone=absolute(config.backbone),
        dataset=absolute(config.dataset),
        data_root=str(Path(config.data_root).absolute()),
        device=device,
        store=str(Path(config.store).absolute()),
        key=key,
        space=space,
        rungs=(num_train,) if whole else choose_rungs(num_train),
        labels=labels,
        num_classes=dataset.num_classes,
        num_label_free=min(NUM_LABEL_FREE, num_train),
        sigmas={timestep: backbone.sigma(timestep) for timestep in timesteps},
        seed=seed,
    )
    return plan, backbone, dataset


def absolute(name: str) -> str:
    """A folder's absolute path, because workers run elsewhere; any other name as it is."""
    return str(Path(name).absolute()) if Path(name).is_dir() and name not in SHIPPED and name not in DATASETS else name


def choose_device(name: str) -> str:
    """auto is cuda where PyTorch sees a GPU, else cpu."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={name!r} is not available ({str(error).splitlines()[0]}); use cpu, or cuda where there is a GPU"
        ) from error
    return name


def check_name(kind: str, name: str, allowed: Iterable[str]) -> None:
    """Raises ValueError with what is allowed, and the nearest of it."""
    allowed = list(allowed)
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{kind}={name!r} is not known; allowed: {', '.join(allowed)}{hint}")


def estimate(plan: Plan, backbone: Backbone, dataset: Dataset, passes: tuple[int, int]) -> str:
    """What a sweep of so many forward passes (least, most) costs, by timing a batch of 32 images on one thread, as an
    extractor has."""
    torch.set_num_threads(1)
    rows = dataset.splits["train"][:32]
    space = plan.space
    blocks = [block.name for block in space.blocks]
    extract(backbone, dataset, rows, space.timesteps[0], blocks, plan.key)
    started = time.perf_counter()
    extract(backbone, dataset, rows, space.timesteps[0], blocks, plan.key)
    seconds = (time.perf_counter() - started) / len(rows)
    gigabytes = [num * plan.bytes_per_image / 1e9 for num in passes]
    minutes = [num * seconds / 60 for num in passes]
    cells = f"{len(blocks)} blocks x {len(space.timesteps)} timesteps"
    if space.heads:
        cells += (
            f" x {len(space.poolings)} poolings x {len(space.heads)} heads = {len(space.candidates):,} cells, "
            "without poolings above a map's size"
        )
    return "\n".join(
        [
            f"space           {cells}",
            f"images          {plan.rungs[-1]:,} train, {plan.num_val:,} val, {plan.num_classes} classes",
            f"forward passes  {passes[0]:,} to {passes[1]:,}",
            f"one pass        {backbone.flops * space.pass_share / 1e9:.3g} GFLOP an image, "
            f"{1000 * seconds:.3g} ms on {plan.device}",
            f"features        {gigabytes[0]:.2g} to {gigabytes[1]:.2g} GB in {plan.store}",
            f"extraction      {minutes[0]:.2g} to {minutes[1]:.2g} minutes, divided by the number of cores or GPUs",
        ]
    )


def choose_rungs(num_train: int, num_rungs: int = 3) -> tuple[int, ...]:
    """Training images at each rung: all, a quarter, a sixteenth, but never fewer than 64."""
    rungs = {max(num_train // REDUCTION**k, min(64, num_train)) for k in range(num_rungs)}
    return tuple(sorted(rungs))
