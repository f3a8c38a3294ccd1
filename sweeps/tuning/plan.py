"""From flags to a plan: what is searched, on what, and all that a worker needs to know about it."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ddae.backbones import SHIPPED, Backbone, Block, Settings, load_backbone
from ddae.datasets import DATASETS, Dataset, load_dataset
from ddae.features import FIRST_VIEW, FeatureKey, check_timestep, width
from ddae.heads import expand, find_head
from ddae.nearest import did_you_mean
from ddae.probe import Candidate
from storage.remote import Remote, is_address
from storage.results import content_key
from sweeps.cli import SEEDS, ModelAndData, check_numbers
from sweeps.tuning.space import Need, Places, Space

PROBE_VERSION = 3
"""Raise it when the same candidate would be fitted differently."""
VAL_FRACTION = 0.2
REDUCTION = 4
"""Each rung has about so many times the images of the one before, and ASHA lets about one candidate in so many on."""
MIN_IMAGES, MIN_IMAGES_A_CLASS = 64, 7
"""Of the first look at a place; fewer do not tell timesteps apart."""


MAX_VIEWS = 1000
NUM_LABEL_FREE = 32
"""Images of a search's label-free scores; 256 rank the places no better (docs/log.md)."""


@dataclass(frozen=True)
class Plan:
    """A sweep as its workers see it."""

    name: str
    """The dataset's name, or its folder's."""
    backbone: str
    dataset: str
    data_root: str
    settings: Settings
    encoder: str
    """Encoder.fingerprint; empty where the network takes pixels."""
    store: str
    """A folder's absolute path, or an address."""
    key: FeatureKey
    space: Space
    looks: tuple[int, ...]
    """Numbers of training images, growing, at which closed-form ridge looks at every place still in the race."""
    rungs: tuple[int, ...]
    """Numbers of training images, growing, on which trials fit their heads; the last is all of them."""
    exhaustive: bool
    """The grid: every place stays in the race, and trials fit on all images at once."""
    keep: float
    """Share of the timesteps that stay in the race after a look."""
    finalists: int
    """So many timesteps stay, but for those where every block is clearly worse."""
    labels: dict[str, np.ndarray]
    """int64, of train and val, in the order of the rows."""
    num_classes: int
    sigmas: dict[int, float]
    """timestep -> noise-to-signal ratio."""
    seed: int
    views: int = 1
    """Of every training image that heads are fitted on: the image as it is, then flipped and cropped ones."""
    gpus_per_extractor: float = 1.0
    start: str = "ridge"
    """What makes the first cut of the timesteps: ridge at the first look, or the label-free ranking before any look."""

    def folder(self, draw: int = 0) -> str:
        """The store's folder of all features that differ in split, timestep and block alone."""
        return f"{self.name}/{content_key(**{**self.key.asdict(), 'draw': draw})[:16]}"

    def column(self, timestep: int, split: str, block: str, draw: int = 0) -> str:
        """The folder of one block's features in the store."""
        return f"{self.folder(draw)}/t={timestep}/split={split}/block={block}"

    def latents(self, split: str, draw: int) -> str:
        """The folder of the encoded images, which serve every timestep, noise draw and network with this encoder."""
        key = self.key
        made_by = self.encoder, key.images, key.split_seed, key.val_fraction
        view = (key.noise_seed, draw) if draw >= FIRST_VIEW else ()
        return f"{self.name}/latents-{content_key(made_by=made_by, view=view)[:16]}/split={split}/block=latents"

    def result_key(self, candidate: Candidate, num_images: int) -> str:
        return content_key(
            features=self.key.asdict(),
            candidate=candidate.name,
            num_images=num_images,
            views=self.views,
            seed=self.seed,
            version=PROBE_VERSION,
        )

    def look_key(self, need: Need, poolings: Sequence[int]) -> str:
        return content_key(
            features=self.key.asdict(), look=asdict(need), poolings=list(poolings), version=PROBE_VERSION
        )

    @property
    def draws(self) -> tuple[int, ...]:
        """Of the views."""
        return 0, *range(FIRST_VIEW, FIRST_VIEW + self.views - 1)

    @property
    def num_val(self) -> int:
        return len(self.labels["val"])

    @property
    def bytes_per_image(self) -> int:
        """Of one timestep in the store."""
        return sum(2 * width(block, self.key.pooling) for block in self.space.blocks)

    def num_kept(self, cut: int) -> int:
        """How many timesteps may stay in the race after a cut; 0 is the first."""
        num_timesteps = len(self.space.timesteps)
        if self.exhaustive:
            return num_timesteps
        return min(num_timesteps, max(self.finalists, math.ceil(num_timesteps * self.keep ** (cut + 1))))

    @property
    def first_cut(self) -> int:
        """The number of the cut that the first look makes."""
        return 1 if self.start == "label-free" else 0

    def label_free_needs(self, num_images: int = NUM_LABEL_FREE, draw: int = 1) -> list[Need]:
        """One of the two noise draws that the label-free scores compare."""
        num_images = min(num_images, self.rungs[-1])
        return [Need(t, "train", num_images, blocks, draw) for t, blocks in self.space.places.items()]

    def least_and_most(self) -> tuple[float, float]:
        """Full forward passes of a search that the shallowest block wins soon, and of one that loses no block."""
        blocks = tuple(block.name for block in self.space.blocks)
        winners = (blocks if self.exhaustive else blocks[:1]), blocks
        least, most = (self.space.forward_passes(self._planned(each)) for each in winners)
        return least, most

    def _planned(self, winners: tuple[str, ...]) -> Iterator[Need]:
        timesteps, blocks = self.space.timesteps, tuple(block.name for block in self.space.blocks)
        for draw in (0, 1):
            yield from self.label_free_needs(draw=draw)
        for timestep in timesteps[: self.num_kept(0)] if self.first_cut else timesteps:
            yield Need(timestep, "train", self.looks[0], blocks)
        for cut, num_images in enumerate(self.looks[1:], start=self.first_cut):
            for timestep in timesteps[: self.num_kept(cut)]:
                yield Need(timestep, "train", num_images, winners)
        for timestep in timesteps[: self.num_kept(self.first_cut + len(self.looks) - 1)]:
            cell = Candidate(winners[0], timestep, 1, "linear")
            yield from self.trial_needs(cell, self.rungs[-1], {timestep: winners})

    def trial_needs(self, candidate: Candidate, num_images: int, places: Places) -> list[Need]:
        """Of a candidate on num_images: one pass serves all blocks that are still in the race at its timestep."""
        timestep = candidate.timestep
        blocks = tuple(dict.fromkeys([*places.get(timestep, ()), candidate.block]))
        train = [Need(timestep, "train", num_images, blocks, draw) for draw in self.draws]
        return [*train, Need(timestep, "val", self.num_val, blocks)]

    @property
    def grid_passes(self) -> float:
        """Full forward passes of the exhaustive grid: every view of every image at every timestep."""
        share = max(block.flops_share for block in self.space.blocks)
        return share * len(self.space.timesteps) * (self.views * self.rungs[-1] + self.num_val)


def sweep_folder(out: Path, plan: Plan, *search: object) -> Path:
    """out/layer-noise-<hash of all that decides the sweep's trials, but for how many there are>."""
    space = plan.space
    key = content_key(
        features=plan.key.asdict(),
        blocks=[block.name for block in space.blocks],
        timesteps=space.timesteps,
        poolings=space.poolings,
        heads=space.heads,
        rungs=(plan.looks, plan.rungs),
        search=search,
        race=(plan.keep, plan.finalists, *({plan.start} - {"ridge"})),
        views=plan.views,
        seed=plan.seed,
        version=PROBE_VERSION,
    )
    return out / f"layer-noise-{key[:8]}"


def make_plan(
    config: ModelAndData,
    poolings: Sequence[int] = (1,),
    heads: Sequence[str] | None = None,
    seed: int = 0,
    exhaustive: bool = False,
    keep: float = 0.5,
    finalists: int = 2,
    views: int = 1,
    start: str = "ridge",
) -> tuple[Plan, Backbone, Dataset]:
    """Load the model and the images and check every name and number against them; a ValueError names what is wrong.

    heads: None where none is to be fitted. The rest: as in Plan.
    """
    for name, values in (("poolings", poolings), ("heads", heads)):
        if values is not None and not values:
            raise ValueError(f"--{name} is empty; give at least one, or leave the flag out for the default")
    heads = expand(heads or ())
    for pooling in poolings:
        if pooling < 1 or max(4, *poolings) % pooling:
            raise ValueError(f"pooling={pooling} does not follow exactly from a coarser grid; choose among 1, 2, 4, 8")
    if is_address(config.store):
        Remote(config.store).check()
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must lie above 0 and not above 1; 0.5 halves the timesteps after each look")
    if finalists < 1:
        raise ValueError(f"finalists={finalists} must be 1 or more; the default is 2")
    if exhaustive and start != "ridge":
        raise ValueError(f"start={start!r} cuts timesteps, and the grid keeps all of them; leave --start out")
    if not 1 <= views <= MAX_VIEWS:
        raise ValueError(f"views={views} must be 1 or more, and {MAX_VIEWS} at most; 1 is every image as it is")
    if not SEEDS[0] <= seed <= SEEDS[1]:
        raise ValueError(f"seed={seed} must be {SEEDS[0]} or more, and {SEEDS[1]:,} at most")
    check_numbers(config, gpus_per_extractor=(0.01, 1))
    backbone = load_model(config)
    blocks = choose_blocks(backbone, config.blocks)
    timesteps = tuple(sorted(set(config.timesteps or backbone.schedule.defaults)))
    for timestep in timesteps:
        check_timestep(backbone, timestep)
    largest = max(block.size for block in blocks)
    for pooling in poolings:
        if pooling > largest:
            raise ValueError(f"pooling={pooling} is larger than every chosen block's map; the largest is {largest}")
    space = Space(blocks, timesteps, tuple(sorted(set(poolings))), heads)
    if heads:
        space = replace(space, blocks=tuple(block for block in blocks if space.candidates_at({0: (block.name,)})))
        for block in blocks if config.blocks else ():
            if block not in space.blocks:
                raise ValueError(
                    f"block={block.name!r} is too small for all poolings and heads; leave it out of --blocks"
                )
    for head in heads:
        if not any(cell.head == head for cell in space.candidates):
            least = find_head(head)[0].min_grid
            raise ValueError(f"head={head!r} wants a pooling of {least} or more on a map as large; see --poolings")
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
    rungs = choose_rungs(num_train, dataset.num_classes)
    looks = rungs[:1] if exhaustive or len(rungs) == 1 else rungs[:-1]
    plan = Plan(
        name=Path(config.dataset).resolve().name or "images",
        backbone=absolute(config.backbone),
        dataset=absolute(config.dataset),
        data_root=str(Path(config.data_root).absolute()),
        settings=make_settings(config),
        encoder=backbone.encoder.fingerprint,
        store=config.store if is_address(config.store) else str(Path(config.store).absolute()),
        key=key,
        space=space,
        looks=looks[1:] or looks if start == "label-free" else looks,
        rungs=rungs[-1:] if exhaustive else rungs[-2:],
        exhaustive=exhaustive,
        keep=keep,
        finalists=finalists,
        labels=labels,
        num_classes=dataset.num_classes,
        sigmas={timestep: backbone.sigma(timestep) for timestep in timesteps},
        seed=seed,
        views=views,
        gpus_per_extractor=config.gpus_per_extractor,
        start=start,
    )
    return plan, backbone, dataset


def load_model(config: ModelAndData) -> Backbone:
    """The backbone that the flags name, on the CPU where a cluster's machines do the work.

    Raises ValueError for a number that no network can be run with.
    """
    check_numbers(config, image_size=(0, 4096), num_steps=(2, 1000), data_seed=SEEDS)
    settings = make_settings(config)
    return load_backbone(config.backbone, replace(settings, device="cpu") if "RAY_ADDRESS" in os.environ else settings)


def make_settings(config: ModelAndData) -> Settings:
    """As an extractor has them."""
    on_cluster = "RAY_ADDRESS" in os.environ
    return Settings(
        config.device if on_cluster and config.device != "auto" else choose_device(config.device),
        config.precision,
        config.channels_last,
        config.compile,
        config.image_size,
        config.num_steps,
        absolute(config.text_embedding) if config.text_embedding else "",
    )


def choose_blocks(backbone: Backbone, names: Sequence[str]) -> tuple[Block, ...]:
    """The blocks of these names, their own or the paper's, in the order of the data; all where none is named."""
    for name in names:
        check_name("block", name, [known for block in backbone.blocks for known in (block.name, block.alias) if known])
    return tuple(block for block in backbone.blocks if not names or {block.name, block.alias} & set(names))


def absolute(name: str) -> str:
    """A folder's or file's absolute path, because workers run elsewhere; any other name as it is."""
    return str(Path(name).absolute()) if Path(name).exists() and name not in SHIPPED and name not in DATASETS else name


def choose_device(name: str) -> str:
    """auto is cuda where PyTorch sees a GPU, else cpu."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # meta holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={name!r} is not available ({str(error).splitlines()[0]}); use cpu, or cuda where there is a GPU"
        ) from error
    return name


def check_name(kind: str, name: str, allowed: Iterable[str]) -> None:
    """Raises ValueError with what is allowed, and the nearest of it."""
    allowed = list(allowed)
    if name not in allowed:
        raise ValueError(f"{kind}={name!r} is not known; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}")


def choose_rungs(num_train: int, num_classes: int) -> tuple[int, ...]:
    """Training images at each rung: all, a quarter, a sixteenth, ... as long as they are enough to tell anything."""
    least = max(MIN_IMAGES, MIN_IMAGES_A_CLASS * num_classes)
    rungs = [num_train]
    while rungs[0] // REDUCTION >= least:
        rungs.insert(0, rungs[0] // REDUCTION)
    return tuple(rungs)
