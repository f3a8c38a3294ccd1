"""The baseline: a network that is trained from scratch for noised images, under the noise of the answer."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ddae.backbones import Backbone
from ddae.finetune import RECIPES, batch_places
from ddae.noise import image_noise
from ddae.noise_levels import DISTRIBUTIONS
from ddae.noisy_wide_resnet import NoisyWideResNet, sizes_of
from ddae.views import flip_and_crop
from storage.ledger import content_key
from sweeps.cluster.loop import run_loop
from sweeps.noisy.task import NoisyTask
from sweeps.probing.extractor import opened
from sweeps.probing.source import FeatureSource
from sweeps.search.task import Axis, Checkpoint, Objective, Resources, Result

VERSION = 1
"""Raise it when the same training would give other numbers."""
RECIPE, LEARNING_RATE, WEIGHT_DECAY = RECIPES["classifier"], 0.1, 5e-4
EVALUATION_BATCH = 256
CHECKPOINT_SECONDS = 60


@dataclass(frozen=True, order=True)
class BaselineCell:
    network: str
    noise: str


@dataclass(frozen=True)
class BaselineTask:
    """noisy: the task whose images and levels it sees. epochs: how often it sees each image."""

    noisy: NoisyTask
    network: str
    noise: str
    epochs: int
    name: str = "noisy-baseline"
    objectives: tuple[Objective, ...] = (Objective("val_accuracy"),)
    resource: str = "steps"

    @property
    def source(self) -> FeatureSource:
        return self.noisy.source

    @property
    def cells(self) -> tuple[BaselineCell, ...]:
        return (BaselineCell(self.network, self.noise),)

    @property
    def axes(self) -> Mapping[str, Axis]:
        return {"network": Axis((self.network,)), "noise": Axis((self.noise,))}

    @property
    def num_images(self) -> int:
        return self.noisy.rungs[-1]

    @property
    def batch_size(self) -> int:
        return min(RECIPE.batch_size, self.num_images)

    @property
    def rungs(self) -> tuple[int, ...]:
        return (self.epochs * (self.num_images // self.batch_size),)

    def resources(self, cell: BaselineCell, rung: int) -> Resources:
        return Resources(1, 1 if self.source.settings.device.startswith("cuda") else 0)

    def key(self, cell: BaselineCell, rung: int) -> str:
        noisy = self.noisy
        return content_key(
            task=self.name,
            features=self.source.key.asdict(),
            network=(cell.network, cell.noise),
            levels=(tuple(noisy.grid), tuple(noisy.between)),
            images=(self.num_images, noisy.num_val),
            steps=rung,
            seed=noisy.seed,
            version=VERSION,
        )

    def reads(self, cell: BaselineCell, rung: int) -> BaselineCell:
        return cell

    def needs(self, cell: BaselineCell, rung: int) -> tuple:
        return ()

    def run(self, cells: Sequence[BaselineCell], rung: int, checkpoints: Sequence[Checkpoint]) -> Iterator[Result]:
        for cell, checkpoint in zip(cells, checkpoints, strict=True):
            started, training = time.time(), BaselineTraining(self, cell)
            device = torch.device(self.source.settings.device)
            run_loop(training, checkpoint, device, every_seconds=CHECKPOINT_SECONDS)
            num_parameters = sum(each.numel() for each in training.network.parameters())
            yield self.noisy.result(training.score(), started, num_parameters=num_parameters)

    def label(self, cell: BaselineCell) -> str:
        return f"{cell.network}/{cell.noise}"

    def params(self, cell: BaselineCell) -> dict[str, str | int | float]:
        return {"network": cell.network, "noise": cell.noise, "num_images": self.num_images}


@dataclass
class BaselineTraining:
    """Order, crops, levels and noise depend on (seed, step) alone. Pixels are cropped, latents stay as they are."""

    task: BaselineTask
    cell: BaselineCell
    autocast = None
    max_gradient_norm = 1.0
    accumulate = 1

    @property
    def num_steps(self) -> int:
        return self.task.rungs[-1]

    @property
    def batch_size(self) -> int:
        return self.task.batch_size

    @property
    def recipe(self) -> Mapping[str, Any]:
        return {"key": self.task.key(self.cell, self.num_steps)}

    def start(self, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        noisy, extractor = self.task.noisy, opened(self.task.source)
        self.backbone: Backbone = extractor.backbone
        self.rows = extractor.dataset.splits["train"][: self.task.num_images]
        self.labels = torch.from_numpy(noisy.probing.labels["train"][: self.task.num_images])
        self.timesteps = np.array(list(noisy.grid))
        self.shares = DISTRIBUTIONS[self.cell.noise](noisy.levels, tuple(noisy.grid.values()))
        images = extractor.dataset.images.read(self.rows)
        self.images = images if not self.task.source.encoder else self.encode(images)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(noisy.seed)
            network = NoisyWideResNet(
                *sizes_of(self.cell.network), self.backbone.encoder.shape[0], noisy.probing.num_classes
            )
        self.network = network.to(device)
        self.optimizer = RECIPE.make_optimizer(self.network.parameters(), LEARNING_RATE, WEIGHT_DECAY)

    def encode(self, images: Tensor) -> Tensor:
        return torch.cat([self.backbone.encode(batch).clone() for batch in images.split(EVALUATION_BATCH)])

    def schedule(self, step: int) -> float:
        return RECIPE.rate(step, self.num_steps, 1, warmup_steps=self.num_steps // 40)

    def loss(self, network: nn.Module, step: int) -> Tensor:
        seed, places = self.task.noisy.seed, batch_places(len(self.rows), self.batch_size, step, self.task.noisy.seed)
        rng = np.random.default_rng([seed, step])
        timesteps = rng.choice(self.timesteps, len(places), p=self.shares)
        if self.task.source.encoder:
            x0 = self.images[places]
        else:
            view = 1 + step // (len(self.rows) // self.batch_size)
            x0 = self.encode(flip_and_crop(self.images[places], self.rows[places], seed, view, flip=False))
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32)).to(x0.device)
        scores = network(self.noised(x0, noise, timesteps), self.told(timesteps, x0.device))
        return functional.cross_entropy(scores, self.labels[places].to(scores.device))

    def noised(self, x0: Tensor, noise: Tensor, timesteps: np.ndarray) -> Tensor:
        """x_t of each image at its own timestep."""
        x_t = torch.empty_like(x0)
        for timestep in np.unique(timesteps):
            here = torch.from_numpy(np.flatnonzero(timesteps == timestep)).to(x0.device)
            x_t[here] = self.backbone.noised(x0[here], noise[here], int(timestep))
        return x_t

    def told(self, timesteps: np.ndarray, device: torch.device) -> Tensor:
        levels = self.task.noisy.levels
        return torch.tensor([levels[int(timestep)] for timestep in timesteps], device=device)

    @torch.inference_mode()
    def score(self) -> np.ndarray:
        """Which val images are classified correctly at each level, under the noise of the stored features: bool
        [levels that are looked at, num_val]."""
        noisy, dataset = self.task.noisy, opened(self.task.source).dataset
        rows, labels = dataset.splits["val"][: noisy.num_val], noisy.probing.labels["val"][: noisy.num_val]
        x0, shape = self.encode(dataset.images.read(rows)), self.backbone.encoder.shape
        self.network.eval()
        found = []
        for timestep in noisy.looked_at:
            x_t = self.backbone.noised(x0, image_noise(rows, shape, timestep, noisy.source.key.noise_seed), timestep)
            told = self.told(np.full(len(rows), timestep), x0.device)
            pairs = zip(x_t.split(EVALUATION_BATCH), told.split(EVALUATION_BATCH), strict=True)
            found.append(torch.cat([self.network(*pair).argmax(1) for pair in pairs]).cpu().numpy() == labels)
        return np.stack(found)

    def after_step(self, step: int) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
