"""Runs a training, and writes model, card and pictures."""

import json
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ddae.pretrain import Pretraining, sample
from ddae.pretraining.frameworks import FRAMEWORKS
from ddae.pretraining.networks import NETWORKS
from ddae.report.figures import image_grid
from ddae.report.training import loss_curve
from ddae.units import counted, duration
from storage.files import published
from storage.ledger import content_key
from storage.secrets import hidden
from sweeps.cluster.loop import TrainingProgress
from sweeps.cluster.train import FileCheckpoint, Trained, training_bar
from sweeps.cluster.train import train as run_training
from sweeps.findings.folder import attempt
from sweeps.flags import as_flags
from sweeps.pretraining.latents import encode_latents
from sweeps.pretraining.setup import RECIPE_FILE, device_of, folder_of
from sweeps.pretraining.tracked import TrackedTraining
from sweeps.progress import bars

if TYPE_CHECKING:
    from sweeps.pretrain import Pretrain


def without_out(args: Sequence[str]) -> list[str]:
    """A card goes where its readers have no such folder."""
    kept = [arg for arg in args if not arg.startswith("--out=")]
    if "--out" in kept:
        del kept[(place := kept.index("--out")) : place + 2]
    return kept


def train(config: "Pretrain", training: Pretraining, tracked: TrackedTraining | None = None) -> Trained:
    checkpoint = FileCheckpoint(folder_of(config) / "checkpoint.pt")
    if not checkpoint.path.exists():
        with published(folder_of(config) / RECIPE_FILE) as part:
            part.write_text(json.dumps(dict(training.recipe), indent=1) + "\n")
    with bars() as progress:
        if training.latents and not training.latents.file.exists():
            track = partial(progress.track, task_id=progress.add_task("encoding", note=""))
            encode_latents(training, device_of(config) if torch.cuda.is_available() else "cpu", track)
        bar = training_bar(progress, "training", config.steps)

        def show(reported: TrainingProgress) -> None:
            bar(reported)
            if tracked:
                tracked.show(reported)

        return run_training(
            training,
            checkpoint,
            device_of(config),
            config.num_workers,
            every_steps=config.checkpoint_every,
            on_progress=show,
        )


def tracked_training(config: "Pretrain", training: Pretraining) -> TrackedTraining:
    """The training in MLflow, one run for each --out and recipe."""
    out = folder_of(config).absolute()
    key = content_key(recipe=training.recipe, out=str(out))
    params = {name: value for name, value in as_flags(config).items() if name not in ("out", "dry_run")}
    return TrackedTraining(
        f"pretrain {Path(config.dataset).name}",
        key,
        out.name,
        params,
        lambda step: config.learning_rate * training.schedule(step),
        out / "samples",
    )


def publish(config: "Pretrain", training: Pretraining, trained: Trained, tracked: TrackedTraining) -> tuple[str, str]:
    """Write model and card, then pictures, and log all; returns what the command prints, and what could not be done."""
    out, network = folder_of(config), training.averaged()
    training.save(out / "model")
    last = trained.losses[-500:]
    final_loss, millions = sum(last) / len(last), sum(each.numel() for each in network.parameters()) / 1e6
    data_share = training.data_seconds / trained.seconds
    with published(out / "model" / "README.md") as part:
        part.write_text(
            MODEL_CARD.format(
                what=what_it_is(training),
                labels="with" if training.shape.num_classes else "without",
                noise=noise_of(training),
                command=hidden(shlex.join(["python", "sweeps/pretrain.py", *without_out(sys.argv[1:])])),
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
        f"loss {final_loss:.4f} over the last {len(last)} steps; {millions:.2f}M parameters; "
        f"data {data_share:.1%} of the time\n"
        f"model    {out / 'model'}\npictures {out / 'samples.png'}, {out / 'loss.png'}"
    )
    metrics = {"final_loss": final_loss, "training_seconds": trained.seconds, "data_share": data_share}
    files = [out / name for name in ("loss.png", "samples.png", "model/README.md")]
    return text, "; ".join(filter(None, [*undrawn, tracked.finish(trained.losses, metrics, files)]))


def what_it_is(training: Pretraining) -> str:
    name, shape = FRAMEWORKS[training.framework].name, training.shape
    if training.scheduler is None:
        return f"{name} (AutoencoderKL)"
    kind = "class-conditional" if shape.num_classes else "unconditional"
    return f"{kind} {name}{' in latents' if training.latents else ''}"


def noise_of(training: Pretraining) -> str:
    network, noise = NETWORKS[training.network_kind].name, FRAMEWORKS[training.framework].noise(training.levels)
    return noise if network == "UNet" else f"{network} with {noise}"


def draw_samples(training: Pretraining, seed: int, path: Path) -> None:
    image_grid(sample(training, 64, seed), path)


MODEL_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# A small {what} on {dataset}

{params:.2f}M parameters, {noise}, fp16 weights of the exponential moving average.
Trained on the {num_images:,} images of the official train split, {labels} labels; no test image was seen.

| command | `{command}` |
|---|---|
| seed | {seed} |
| steps x batch | {steps:,} x {batch_size} |
| loss, mean of the last 500 steps | {loss:.4f} |
| training time | {duration} on {device} ({threads}) |
"""
