"""Runs a training, and writes model, card and pictures."""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ddae.pretrain import Pretraining, sample, save
from ddae.pretraining.frameworks import FRAMEWORKS
from ddae.pretraining.networks import NETWORKS
from ddae.report.figures import image_grid
from ddae.report.training import loss_curve
from ddae.units import counted, duration
from storage.files import published
from storage.secrets import hidden
from sweeps.cluster.train import FileCheckpoint, Trained, training_bar
from sweeps.cluster.train import train as run_training
from sweeps.findings.folder import attempt
from sweeps.pretraining.setup import device_of, folder_of
from sweeps.progress import bars

if TYPE_CHECKING:
    from sweeps.pretrain import Pretrain


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
                family=FRAMEWORKS[training.framework].name,
                kind="class-conditional" if training.shape.num_classes else "unconditional",
                labels="with" if training.shape.num_classes else "without",
                noise=noise_of(training),
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


def noise_of(training: Pretraining) -> str:
    noise = FRAMEWORKS[training.framework].noise(training.levels)
    kind = training.network_kind
    return (
        noise if kind == "unet" else f"{NETWORKS[kind].name}, {noise}" if kind != "ddpm++" else f"DDPM++ with {noise}"
    )


def draw_samples(training: Pretraining, seed: int, path: Path) -> None:
    image_grid(sample(training, 64, seed), path)


MODEL_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# A small {kind} {family} on {dataset}

{params:.2f}M parameters, {noise}, fp16 weights of the exponential moving average.
Trained on the {num_images:,} images of the official train split, {labels} labels; no test image was seen.

| command | `{command}` |
|---|---|
| seed | {seed} |
| steps x batch | {steps:,} x {batch_size} |
| loss, mean of the last 500 steps | {loss:.4f} |
| training time | {duration} on {device} ({threads}) |
"""
