"""Trains a diffusion network, whose features a sweep then searches."""

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddae.backbones.base import per_image
from ddae.backbones.predictions import of_scheduler
from ddae.backbones.schedules import noise_of, told
from ddae.datasets import Images, Reading, load_images
from ddae.generation.sampling import sample_by
from ddae.noise import VP
from ddae.pretraining.augmentation import augment, draw_mirrored, draw_parameters, mirror
from ddae.pretraining.frameworks import FRAMEWORKS, Levels
from ddae.pretraining.latents import Latents, open_encoder, scale_latents
from ddae.pretraining.networks import NETWORKS, Shape
from ddae.report.figures import image_grid

NULL_CLASS_SHARE = 0.1
"""Share of the images whose class is kept from a class-conditional network (Ho & Salimans 2022)."""


def rate(step: int, num_steps: int, warmup_steps: int, decay: str = "cosine") -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a half cosine to zero, or 1."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay == "none":
        return 1.0
    progress = torch.tensor((step - warmup_steps) / max(1, num_steps - warmup_steps))
    return float(0.5 * (1 + torch.cos(torch.pi * progress)))


load_images_once = lru_cache(maxsize=1)(load_images)
"""As load_images; only images of the official train split are trained on."""


@dataclass(frozen=True)
class Recipe:
    """What decides the trained weights, beside network, noise and images."""

    num_steps: int
    batch_size: int
    learning_rate: float
    """Peak, of AdamW."""
    warmup_steps: int
    decay: str
    """What follows the warm-up: cosine (to zero) or none."""
    max_gradient_norm: float
    ema_decay: float
    flip: bool
    augment: float
    """Probability of each change of EDM's augmentation; 0 for none."""
    accumulate: int
    """Parts in which a batch goes through the network, one after the other."""
    seed: int


@dataclass
class Pretraining:
    """How a network is trained: AdamW, gradients of a limited norm, a moving average of the weights.

    The images of a step, their noise levels and their noise depend on (seed, step) alone, and worker r of R takes every
    R-th of them from the r-th on. After start(), data_seconds says how long steps have waited for images.
    """

    framework: str
    """A key of FRAMEWORKS, as network is of NETWORKS."""
    network_kind: str
    levels: Levels
    shape: Shape
    dataset: str
    image_size: int
    data_root: str
    reading: Reading
    """How the files are read; they are not opened first."""
    how: Recipe
    autocast: torch.dtype | None
    recipe: Mapping[str, Any]
    """The flags that decide the trained weights."""
    latents: Latents | None
    """What is denoised in place of pixels."""
    snapshots: Path
    """Folder in which copies of the averaged network are kept on the way, step-N."""
    snapshot_every: int
    """Steps between two of them; 0 keeps none."""
    sample_every: int = 0
    """Steps between grids of samples, which are drawn into samples/ of the same folder; 0 draws none."""
    compile: bool = False
    parts: tuple[int, Iterator[tuple[int, "Batch"]]] = field(default=(-1, iter(())), init=False)
    """A step, and what of its images the network has not seen."""

    @property
    def num_steps(self) -> int:
        return self.how.num_steps

    @property
    def batch_size(self) -> int:
        return self.how.batch_size

    @property
    def max_gradient_norm(self) -> float:
        return self.how.max_gradient_norm

    @property
    def accumulate(self) -> int:
        return self.how.accumulate

    def start(self, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        from diffusers.training_utils import EMAModel

        self.device, self.rank, self.world_size = device, rank, world_size
        self.reader, self.data_seconds = ThreadPoolExecutor(1), 0.0
        self.ahead: tuple[int, Future[Batch] | None] = -1, None
        self.images = self.read_images()
        self.scheduler = FRAMEWORKS[self.framework].make_scheduler(self.levels)
        torch.manual_seed(self.how.seed)
        self.network = NETWORKS[self.network_kind].make(self.shape).to(device)
        if self.compile:
            self.network.compile()
        self.ema = EMAModel(self.network.parameters(), decay=self.how.ema_decay, use_ema_warmup=True, power=0.75)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.how.learning_rate, weight_decay=0.0)

    def read_images(self) -> Images:
        return load_images_once(self.dataset, self.image_size, self.data_root, self.reading)

    def schedule(self, step: int) -> float:
        return rate(step, self.num_steps, self.how.warmup_steps, self.how.decay)

    def loss(self, network: nn.Module, step: int) -> Tensor:
        if self.parts[0] != step:
            self.parts = step, iter(self.next_batch(step).parts(self.accumulate))
        number, batch = next(self.parts[1])
        if self.shape.dropout:
            drawn = (self.how.seed * 1_000_003 + step) * self.accumulate + number
            torch.manual_seed((drawn * self.world_size + self.rank) % 2**63)
        predict = partial(NETWORKS[self.network_kind].predict, network, batch.labels, batch.augmentation)
        return FRAMEWORKS[self.framework].loss(predict, self.scheduler, batch.x0, batch.levels, batch.noise)

    def next_batch(self, step: int) -> "Batch":
        """What a thread has read ahead, which now reads what the next step needs."""
        started = time.perf_counter()
        at, coming = self.ahead
        batch = coming.result() if coming and at == step else self.batch(step)
        self.data_seconds += time.perf_counter() - started
        self.ahead = step + 1, self.reader.submit(self.batch, step + 1) if step + 1 < self.num_steps else None
        return batch

    def batch(self, step: int) -> "Batch":
        """What this worker sees at a step, on its device."""
        how, rng = self.how, torch.Generator().manual_seed(self.how.seed * 1_000_003 + step)
        mine = slice(self.rank, None, self.world_size)
        rows = torch.randint(self.images.num_train, (how.batch_size,), generator=rng)[mine].numpy()
        x0 = self.latents.read(rows) if self.latents else self.pixels(rows)
        levels = FRAMEWORKS[self.framework].draw_levels(self.scheduler, how.batch_size, rng)[mine]
        noise = torch.randn((how.batch_size, *x0.shape[1:]), generator=rng)[mine]
        labels = parameters = None
        if how.flip:
            mirrored = draw_mirrored(how.batch_size, rng)[mine]
            x0 = self.latents.read(rows, mirrored) if self.latents else mirror(x0, mirrored)
        if how.augment:
            parameters = draw_parameters(how.batch_size, how.augment, rng)[mine]
            x0 = augment(x0, parameters)
        if num_classes := self.shape.num_classes:
            kept = torch.rand(how.batch_size, generator=rng)[mine] >= NULL_CLASS_SHARE
            labels = torch.from_numpy(self.images.labels[rows]).where(kept, torch.tensor(num_classes))
        return Batch(x0, levels, noise, labels, parameters).to(self.device)

    def pixels(self, rows: np.ndarray) -> Tensor:
        """float32 [N, C, H, W] in [-1, 1]."""
        x0 = self.images.read(rows).float()
        return (x0 if self.shape.in_channels == 3 else x0.mean(1, keepdim=True)) / 127.5 - 1

    def after_step(self, step: int) -> dict[str, float]:
        self.ema.step(self.network.parameters())
        if self.rank == 0 and self.snapshot_every and (step + 1) % self.snapshot_every == 0:
            self.save(self.snapshots / f"step-{step + 1}")
        if self.rank == 0 and self.sample_every and (step + 1) % self.sample_every == 0:
            (self.snapshots / "samples").mkdir(parents=True, exist_ok=True)
            image_grid(sample(self, 16, self.how.seed, 50), self.snapshots / "samples" / f"step-{step + 1}.png")
        return {}

    def averaged(self) -> Any:
        """A copy of the network with the moving average of its weights."""
        network = copy.deepcopy(self.network).eval()
        self.ema.copy_to(network.parameters())
        return network

    def save(self, folder: Path) -> None:
        """Write the averaged network with what belongs to it; see save()."""
        network = self.averaged()
        if self.scheduler is None:
            scale_latents(network, self.pixels(spread_rows(self.images.num_train, 2048)).to(self.device))
        save(network, self.scheduler, folder, self.latents.vae if self.latents else None)

    def state_dict(self) -> dict[str, Any]:
        return {
            "unet": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data_seconds": self.data_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["unet"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.data_seconds = state.get("data_seconds", 0.0)


@dataclass(frozen=True)
class Batch:
    """Images of a step, [N, ...] each; labels and parameters of augmentation are None for a network without."""

    x0: Tensor
    levels: Tensor
    noise: Tensor
    labels: Tensor | None = None
    augmentation: Tensor | None = None

    def parts(self, num_parts: int) -> Iterator[tuple[int, "Batch"]]:
        """(number, every num_parts-th image from there on)."""
        for number in range(num_parts):
            yield number, self.each(itemgetter(slice(number, None, num_parts)))

    def to(self, device: torch.device) -> "Batch":
        return self.each(lambda tensor: tensor.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {
            name: tensor if tensor is None else change(tensor) for name, tensor in vars(self).items()
        }
        return Batch(**changed)


PIPELINES = {"UNet2DModel": ("DDPMPipeline", "unet"), "DiTTransformer2DModel": ("DiTPipeline", "transformer")}
"""What diffusers calls the pipeline of a network, and the network in it."""


def save(network: Any, scheduler: Any, folder: Path, vae: Path | None = None) -> None:
    """Write a diffusers folder with fp16 weights, in place of one that is there: a DDPMPipeline's, that of a pipeline
    on latents, or the network with its scheduler beside it. The network is left in fp16.

    vae: folder of the autoencoder of a network on latents, which is copied into the folder as vae/."""
    from diffusers import DDPMScheduler, __version__

    part, kind = folder.with_name(f"{folder.name}.part"), type(network).__name__
    shutil.rmtree(part, ignore_errors=True)
    pipeline, place = PIPELINES.get(kind, ("", "")) if vae or isinstance(scheduler, DDPMScheduler) else ("", "")
    if place == "transformer" and not vae:
        pipeline = place = ""
    network.half().save_pretrained(part / place)
    parts = {place: ["diffusers", kind]}
    if scheduler is not None:
        scheduler.save_pretrained(part / "scheduler")
        parts["scheduler"] = ["diffusers", type(scheduler).__name__]
    if vae:
        shutil.copytree(vae, part / "vae", ignore=shutil.ignore_patterns("*.md"))
        parts["vae"] = ["diffusers", "AutoencoderKL"]
    if pipeline:
        index = {"_class_name": pipeline, "_diffusers_version": __version__, **dict(sorted(parts.items()))}
        (part / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def spread_rows(num_images: int, count: int) -> np.ndarray:
    """So many rows from all over a set, whose folder may hold one class after the other."""
    return np.linspace(0, num_images - 1, min(count, num_images)).astype(int)


@torch.inference_mode()
def sample(training: Pretraining, num_samples: int, seed: int, num_steps: int = 100) -> Tensor:
    """Images in [0, 1] of the averaged network, [num_samples, C, H, W], with num_steps network passes each; a DDPM is
    sampled by DDIM (Song et al. 2021), a class-conditional network in turn of every class. An autoencoder's are images
    and, each behind its own, what it makes of them."""
    shape, device, scheduler = training.shape, training.device, training.scheduler
    if scheduler is None:
        x = training.pixels(spread_rows(training.images.num_train, num_samples // 2)).to(device)
        averaged = training.averaged()
        pairs = torch.stack([x, averaged.decode(averaged.encode(x).latent_dist.mean).sample], dim=1).flatten(0, 1)
        return (pairs / 2 + 0.5).clamp(0, 1)
    labels = torch.arange(num_samples, device=device) % shape.num_classes if shape.num_classes else None
    predict = partial(NETWORKS[training.network_kind].predict, training.averaged(), labels, None)
    in_edm = hasattr(scheduler, "precondition_noise")
    schedule = noise_of(scheduler, Path(training.dataset), num_steps if in_edm else 0)
    predicted = of_scheduler(scheduler, schedule)
    assert predicted

    def denoise(x_t: Tensor, timestep: int, numbers: np.ndarray) -> Tensor:
        time, scale = told(scheduler, schedule, timestep)
        found = predicted(predict(scale * x_t, per_image(x_t, time)), x_t, timestep)
        return found.clamp(-1, 1) if isinstance(schedule, VP) and not training.latents else found

    size = shape.in_channels, shape.image_size, shape.image_size
    x = sample_by(denoise, schedule, range(num_samples), size, seed, num_steps, "euler", device=device)
    if training.latents:
        x = open_encoder(training.latents.vae, training.image_size, str(device)).decoded(x)
    return (x / 2 + 0.5).clamp(0, 1)
