"""Reads the flags of a training, and refuses what makes no sense."""

import json
import logging
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddae.backbones.files import subfolder
from ddae.datasets import Images, seen_notes
from ddae.pretrain import Pretraining, Recipe, load_images_once, spread_rows
from ddae.pretraining.augmentation import AUGMENT_DIM
from ddae.pretraining.frameworks import FRAMEWORKS, Levels
from ddae.pretraining.latents import Latents, latents_key, open_encoder
from ddae.pretraining.networks import NETWORKS, Shape
from ddae.units import counted
from sweeps import cli
from sweeps.cluster.given import address
from sweeps.cluster.loop import differences
from sweeps.cluster.train import check_shares
from sweeps.flags import SEEDS, as_args, check_numbers
from sweeps.probing.source import absolute, choose_device, reading_of

if TYPE_CHECKING:
    from sweeps.pretrain import Pretrain

log = logging.getLogger("sweeps")

RECIPE_FILE = "recipe.json"
"""In --out: the flags that decide the weights of what else lies there."""

SIZES = "layers_per_block", "stem_channels", "hidden_size", "depth", "patch_size", "latent_channels", "dropout"

FREE = (
    "out", "device", "checkpoint_every", "snapshot_every", "num_workers", "data_root", "check_data", "accumulate",
    "compile", "recipe", "dry_run", "sample_every",
)  # fmt: skip
"""Flags that decide the trained weights to the last digits alone; a checkpoint of other values of the rest is not gone
on from."""
EARLY = (
    "family", "dataset", "steps", "batch_size", "learning_rate", "ema_decay", "channels", "image_size", "seed",
    "autocast",
)  # fmt: skip
"""Flags of version 0.2; a checkpoint holds of the others those that are given."""


def set_up(config: "Pretrain", says: bool = True) -> Pretraining:
    """Check the flags and the images. says: whether what is to be known of the images is logged. Raises ValueError, or
    OSError where --out cannot be written."""
    check(config)
    data = absolute(config.dataset), config.image_size, str(Path(config.data_root).absolute())
    images = load_images_once(*data, reading_of(config))
    if config.class_conditional and len(images.classes) < 2:
        raise ValueError(
            f"class_conditional=True: dataset={config.dataset!r} has "
            f"{counted(len(images.classes), 'class', 'classes')}; give a set with classes, or leave the flag out"
        )
    first = images.read(spread_rows(images.num_train, 64))
    in_channels = 1 if (first == first[:, :1]).all() else 3
    latents, size = None, first.shape[-1]
    if config.latents:
        latents, (in_channels, size, _) = latents_of(config, images, size)
    elif config.family == "vae":
        in_channels = 3  # which every encoder of latents is given
    shape = shape_of(config, size, in_channels, len(images.classes))
    with torch.device("meta"):
        NETWORKS[network_of(config)].make(shape)
    if says:
        say(config, images, 1 if in_channels == 1 else 3)
    recipe = recipe_of(config) | ({"latents": latents.file.stem} if latents else {})
    check_snapshots(folder_of(config), recipe)
    if not config.dry_run:
        cli.check_writable(folder_of(config))
    return Pretraining(
        config.family,
        network_of(config),
        Levels(config.num_levels, config.beta_range),
        shape,
        *data,
        reading=replace(images.reading, check=False),
        how=how_of(config),
        autocast=torch.bfloat16 if config.autocast else None,
        recipe=recipe,
        latents=latents,
        snapshots=folder_of(config).absolute(),
        snapshot_every=config.snapshot_every,
        sample_every=config.sample_every,
        compile=config.compile,
    )


def check(config: "Pretrain") -> None:
    """Raises ValueError for flags that are out of range, or that the network or the kind of diffusion does not read."""
    many = 1, 10**9
    check_numbers(config, steps=many, batch_size=many, checkpoint_every=many, image_size=(8, 4096), seed=SEEDS)
    check_numbers(
        config, snapshot_every=(0, 10**9), sample_every=(0, 10**9), num_workers=many, accumulate=many, warmup=(0, 10**9)
    )
    check_numbers(config, learning_rate=(1e-9, 1e3), ema_decay=(0, 1), max_gradient_norm=(1e-9, float("inf")))
    check_numbers(config, layers_per_block=(1, 100), depth=(1, 1000), patch_size=(1, 1024), hidden_size=(1, 10**5))
    check_numbers(config, latent_channels=(1, 1024), stem_channels=(0, 10**5))
    check_numbers(config, dropout=(0, 0.99), augment=(0, 1))
    check_shares(config.batch_size, config.num_workers)
    if config.batch_size // config.num_workers % config.accumulate:
        raise ValueError(
            f"batch_size={config.batch_size} over num_workers={config.num_workers} cannot be shared evenly by "
            f"accumulate={config.accumulate} parts; choose a multiple of both"
        )
    if not config.channels:
        raise ValueError("--channels is empty; give one width a resolution, or leave the flag out for the default")
    device_of(config)
    if config.family == "vae" and config.network != "auto":
        raise ValueError(f"--network {config.network} is for kinds of diffusion, and this trains a vae; leave it out")
    check_read(config, "network", network_of(config), {name: each.flags for name, each in NETWORKS.items()})
    check_read(config, "family", config.family, {name: each.flags for name, each in FRAMEWORKS.items()})
    Levels(config.num_levels, config.beta_range)


def check_snapshots(folder: Path, recipe: dict[str, Any]) -> None:
    """Raises ValueError where the folder holds snapshots of another recipe; no checkpoint may be left to say so."""
    kept = folder / RECIPE_FILE
    if kept.exists() and any(folder.rglob("step-*")) and (others := differences(json.loads(kept.read_text()), recipe)):
        raise ValueError(f"the snapshots in {folder} were made with other settings ({others}); give another --out")


def check_read(config: "Pretrain", axis: str, chosen: str, readers: dict[str, frozenset[str]]) -> None:
    """Raises ValueError for a flag that is given, and that only others than the chosen one read."""
    defaults = {field.name: field.default for field in fields(config)}
    for name in sorted(frozenset().union(*readers.values()) - readers[chosen]):
        if (value := getattr(config, name)) != defaults[name]:
            *most, last = [other for other, flags in readers.items() if name in flags]
            others = f"{', '.join(most)} or {last}" if most else last
            whose = ", or --recipe, where it comes from" if config.recipe else ""
            flag = " ".join(as_args(name, list(value) if isinstance(value, tuple) else value))
            raise ValueError(f"{flag} is for {axis} {others}, and this trains {chosen}; leave it out{whose}")


def latents_of(config: "Pretrain", images: Images, image_size: int) -> tuple[Latents, tuple[int, int, int]]:
    """Where the latents of the images lie, or will lie once they are encoded, and the shape of one."""
    if config.augment:
        raise ValueError(f"augment={config.augment} is for pixels; leave it out with latents={str(config.latents)!r}")
    assert config.latents
    folder = subfolder(config.latents, "vae").absolute()
    encoder = open_encoder(folder, image_size, "cpu")
    file = folder_of(config).absolute().parent / f"latents-{latents_key(encoder, images, config.flip)}.npy"
    return Latents(folder, file), encoder.shape


def network_of(config: "Pretrain") -> str:
    return FRAMEWORKS[config.family].network if config.network == "auto" else config.network


def shape_of(config: "Pretrain", image_size: int, in_channels: int, num_classes: int) -> Shape:
    same = {name: getattr(config, name) for name in SIZES}
    return Shape(
        image_size,
        in_channels,
        tuple(config.channels),
        attention=tuple(config.attention),
        num_classes=num_classes if config.class_conditional else 0,
        augment_dim=AUGMENT_DIM if config.augment else 0,
        **same,
    )


def how_of(config: "Pretrain") -> Recipe:
    return Recipe(
        num_steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup,
        decay=config.decay,
        max_gradient_norm=config.max_gradient_norm,
        ema_decay=config.ema_decay,
        flip=config.flip,
        augment=config.augment,
        accumulate=config.accumulate,
        seed=config.seed,
    )


def say(config: "Pretrain", images: Images, in_channels: int) -> None:
    """The number of images, then what is left out of them and what else is to be known; a line each."""
    num_test = len(images.labels) - images.num_train
    others = "the official test images" if images.has_own_test else "a fifth of every class, kept for test"
    notes = [f"{images.num_train:,} training images; {num_test:,} are left out, {others}", *images.notes]
    if config.check_data:
        notes += seen_notes(images, np.random.default_rng(0).permutation(images.num_train), in_channels)
    for note in notes:
        log.warning(f"{config.dataset}: {note}")


def recipe_of(config: "Pretrain") -> dict[str, Any]:
    """The flags that decide the weights, as JSON knows them; those of version 0.2, and others that are given."""
    defaults = {field.name: field.default for field in fields(config)}
    if network_of(config) == FRAMEWORKS[config.family].network:
        config = replace(config, network="auto")
    flags = {name: value for name, value in asdict(config).items() if name not in FREE}
    given = {name: value for name, value in flags.items() if name in EARLY or value != defaults[name]}
    return json.loads(json.dumps(given, default=str))


def folder_of(config: "Pretrain") -> Path:
    return config.out or Path("out") / f"{config.family}-{Path(config.dataset).resolve().name}"


def device_of(config: "Pretrain") -> str:
    """A cluster's machines may have a device that this one has not."""
    return config.device if address() and config.device != "auto" else choose_device(config.device)
