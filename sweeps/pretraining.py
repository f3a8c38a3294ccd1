"""Sets up, runs and publishes the training of a small DDPM or EDM."""

import json
import logging
import shlex
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddae.datasets import Images, seen_notes
from ddae.pretrain import FAMILIES, Pretraining, UNetShape, load_images_once, sample, save
from ddae.report.figures import image_grid
from ddae.report.training import loss_curve
from ddae.units import counted, duration
from storage.files import published
from storage.secrets import hidden
from sweeps import cli
from sweeps.cluster.session import address
from sweeps.cluster.train import FileCheckpoint, Trained, check_shares, training_bar
from sweeps.cluster.train import train as run_training
from sweeps.findings.folder import attempt
from sweeps.flags import SEEDS, check_numbers
from sweeps.probing.source import absolute, choose_device, reading_of
from sweeps.progress import bars

if TYPE_CHECKING:
    from sweeps.pretrain import Pretrain

log = logging.getLogger("sweeps")

READING = "label_column", "group_by", "white", "skip_unreadable"
FREE = ("out", "device", "checkpoint_every", "snapshot_every", "num_workers", "data_root", "check_data")
"""Flags that do not decide the trained weights; a checkpoint of other values of the rest is not gone on from."""


def set_up(config: "Pretrain") -> Pretraining:
    """Check the flags and the images. Raises ValueError, or OSError where --out cannot be written."""
    many = 1, 10**9
    check_numbers(config, steps=many, batch_size=many, checkpoint_every=many, image_size=(8, 4096), seed=SEEDS)
    check_numbers(config, snapshot_every=(0, 10**9), num_workers=many)
    check_numbers(config, learning_rate=(1e-9, 1e3), ema_decay=(0, 1))
    check_shares(config.batch_size, config.num_workers)
    if not config.channels:
        raise ValueError("--channels is empty; give one width a resolution, or leave the flag out for the default")
    device_of(config)
    data = absolute(config.dataset), config.image_size, str(Path(config.data_root).absolute())
    images = load_images_once(*data, reading_of(config))
    first = images.read(np.linspace(0, images.num_train - 1, 64).astype(int))
    in_channels = 1 if (first == first[:, :1]).all() else 3
    shape = UNetShape(first.shape[-1], in_channels, tuple(config.channels))
    say(config, images, in_channels)
    cli.check_writable(folder_of(config))
    return Pretraining(
        FAMILIES[config.family],
        shape,
        *data,
        reading=replace(images.reading, check=False),
        num_steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        ema_decay=config.ema_decay,
        seed=config.seed,
        autocast=torch.bfloat16 if config.autocast else None,
        recipe=recipe_of(config),
        snapshots=folder_of(config).absolute(),
        snapshot_every=config.snapshot_every,
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
    flags = {name: value for name, value in asdict(config).items() if name not in FREE}
    return json.loads(json.dumps({name: value for name, value in flags.items() if name not in READING or value}))


def folder_of(config: "Pretrain") -> Path:
    return config.out or Path("out") / f"{config.family}-{Path(config.dataset).resolve().name}"


def device_of(config: "Pretrain") -> str:
    """A cluster's machines may have a device that this one has not."""
    return config.device if address() and config.device != "auto" else choose_device(config.device)


def train(config: "Pretrain", training: Pretraining) -> Trained:
    checkpoint = FileCheckpoint(folder_of(config) / "checkpoint.pt")
    with bars() as progress:
        return run_training(
            training,
            checkpoint,
            device_of(config),
            config.num_workers,
            every_steps=config.checkpoint_every,
            on_progress=training_bar(progress, "training", config.steps),
        )


def publish(config: "Pretrain", training: Pretraining, trained: Trained) -> tuple[str, str]:
    """Write model and card, then pictures; returns what the command prints, and what could not be drawn."""
    out, network = folder_of(config), training.averaged()
    save(network, training.scheduler, out / "model")
    last = trained.losses[-500:]
    final_loss, millions = sum(last) / len(last), sum(each.numel() for each in network.parameters()) / 1e6
    with published(out / "model" / "README.md") as part:
        part.write_text(
            MODEL_CARD.format(
                family=training.family.name,
                noise=training.family.noise,
                command=hidden(shlex.join(["python", "sweeps/pretrain.py", *sys.argv[1:]])),
                dataset=config.dataset,
                num_images=training.images.num_train,
                params=millions,
                steps=config.steps,
                batch_size=config.batch_size,
                loss=final_loss,
                duration=duration(trained.seconds),
                device=device_of(config),
                threads=counted(torch.get_num_threads(), "thread", "threads"),
                seed=config.seed,
            )
        )
    undrawn = [
        attempt(out / "loss.png", partial(loss_curve, trained.losses)),
        attempt(out / "samples.png", partial(draw_samples, training, config.seed)),
    ]
    text = (
        f"loss {final_loss:.4f} over the last {len(last)} steps; {millions:.2f}M parameters\n"
        f"model    {out / 'model'}\npictures {out / 'samples.png'}, {out / 'loss.png'}"
    )
    return text, "; ".join(filter(None, undrawn))


def draw_samples(training: Pretraining, seed: int, path: Path) -> None:
    image_grid(sample(training.averaged(), training.scheduler, 64, seed), path)


MODEL_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# A small unconditional {family} on {dataset}

{params:.2f}M parameters, {noise}, fp16 weights of the exponential moving average.
Trained on the {num_images:,} images of the official train split, without labels; no test image was seen.

| command | `{command}` |
|---|---|
| seed | {seed} |
| steps x batch | {steps:,} x {batch_size} |
| loss, mean of the last 500 steps | {loss:.4f} |
| training time | {duration} on {device} ({threads}) |
"""
