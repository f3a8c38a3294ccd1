"""One training of a cut network, as the loop in sweeps/cluster runs it, and the images that it sees."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ddae.finetune import MAX_NORM, CutClassifier, batch_places, noised_if, scores_of
from ddae.views import AUGMENTATIONS
from sweeps.probing.extractor import SHARD_ROWS, Extractor, opened
from sweeps.probing.source import FeatureSource
from sweeps.search.task import pack

if TYPE_CHECKING:
    from sweeps.finetuning.task import Cell, FinetuneTask

NUM_LATENT_VIEWS = 10
"""How many augmented versions of an image are encoded (DDAE, appendix A); of pixels every epoch has another."""
EVALUATION_BATCH = 64


@dataclass
class CellTraining:
    """Trains a cell of a FinetuneTask; order, augmentation and noise depend on (seed, step) alone."""

    task: "FinetuneTask"
    cell: "Cell"
    autocast = None  # the backbone sees to it
    max_gradient_norm = MAX_NORM
    accumulate = 1

    @property
    def num_steps(self) -> int:
        return self.task.num_steps

    @property
    def batch_size(self) -> int:
        return self.task.batch_size(self.cell.num_labels)

    @property
    def recipe(self) -> Mapping[str, Any]:
        return {"key": self.task.key(self.cell, self.num_steps)}

    def start(self, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        source = self.task.source
        self.source = replace(source, settings=replace(source.settings, device=str(device)))
        self.network, _ = self.task.model(self.cell, self.source)
        self.trained = {name: each for name, each in self.network.named_parameters() if each.requires_grad}
        self.optimizer = self.task.recipe.make_optimizer(
            self.trained.values(), self.cell.learning_rate, self.cell.weight_decay
        )
        self.right: dict[str, str] = {}
        """Steps, as text -> which val images were classified correctly after them, packed."""

    def schedule(self, step: int) -> float:
        steps_per_epoch = max(1, self.cell.num_labels // self.batch_size)
        warmup_steps = min(self.task.warmup_epochs * steps_per_epoch, self.num_steps // 2)
        return self.task.recipe.rate(step, self.num_steps, steps_per_epoch, warmup_steps)

    def loss(self, network: nn.Module, step: int) -> Tensor:
        cell = self.cell
        torch.manual_seed((cell.seed * self.num_steps + step) * self.world_size + self.rank)
        x, labels = self.batch(step)
        return functional.cross_entropy(network(x), labels)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """What this worker sees at a step: inputs [N, *shape] and labels int64 [N]."""
        cell = self.cell
        chosen = batch_places(cell.num_labels, self.batch_size, step, cell.seed)
        places = self.task.labelled(cell)[chosen][self.rank :: self.world_size]
        view = 1 + step // max(1, cell.num_labels // self.batch_size)
        x = inputs(self.source, self.network, "train", places, cell.seed, view, cell.augment)
        return x, torch.from_numpy(opened(self.source).dataset.labels("train")[places]).to(x.device)

    def after_step(self, step: int) -> Mapping[str, float]:
        """Measure on val at every rung, where rank 0 does it."""
        if self.rank or step + 1 not in self.task.ladder:
            return {}
        correct = correct_of(self.source, self.network, "val", self.cell.seed)
        self.right[str(step + 1)] = pack(correct)
        return {"val_accuracy": float(correct.mean())}

    def state_dict(self) -> dict[str, Any]:
        return {
            "tensors": {name: tensor.detach() for name, tensor in self.trained.items()},
            "buffers": dict(self.network.named_buffers()),
            "optimizer": self.optimizer.state_dict(),
            "right": self.right,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        buffers = dict(self.network.named_buffers())
        with torch.no_grad():
            for kept, own in ((state["tensors"], self.trained), (state["buffers"], buffers)):
                for name, tensor in own.items():
                    tensor.copy_(kept[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.right = dict(state["right"])


def inputs(
    source: FeatureSource,
    model: CutClassifier,
    split: str,
    places: np.ndarray,
    seed: int,
    view: int = 0,
    augment: str = "none",
) -> Tensor:
    """What the network is given of the images at these places of a split, [N, *shape]. view: which noise, and which
    augmentation; 0 is none. Latents are read from the store, where they lie flipped and cropped."""
    extractor = opened(source)
    rows = extractor.dataset.splits[split][places]
    if source.encoder:
        views = (
            0
            if augment == "none"
            else 1 + np.random.default_rng([seed, view]).integers(NUM_LATENT_VIEWS, size=len(rows))
        )
        latents = np.stack([latent(extractor, split, int(v), int(p)) for v, p in np.broadcast(views, places)])
        x0 = torch.from_numpy(latents).to(source.settings.device).float().view(-1, *model.backbone.encoder.shape)
    else:
        images = extractor.dataset.images.read(rows)
        if augment != "none":
            images = AUGMENTATIONS[augment](images, rows, seed, view)
        x0 = model.backbone.encode(images).clone()
    return noised_if(model, x0, rows, seed, view)


def latent(extractor: Extractor, split: str, view: int, place: int) -> np.ndarray:
    """float16 [C * S * S]: one encoded image."""
    shard, row = divmod(place, SHARD_ROWS)
    return latents_of(extractor, split, view, shard)[row]


@lru_cache(maxsize=1024)
def latents_of(extractor: Extractor, split: str, view: int, shard: int) -> np.ndarray:
    """float16 [up to 512, C * S * S]: the encoded images of a shard."""
    start = shard * SHARD_ROWS
    return extractor.latents(split, view, start, min(start + SHARD_ROWS, len(extractor.dataset.splits[split])))


def batches(source: FeatureSource, model: CutClassifier, split: str, places: np.ndarray, seed: int) -> Iterator[Tensor]:
    """The inputs of images as they are, in batches."""
    for start in range(0, len(places), EVALUATION_BATCH):
        yield inputs(source, model, split, places[start : start + EVALUATION_BATCH], seed)


def correct_of(source: FeatureSource, model: CutClassifier, split: str, seed: int) -> np.ndarray:
    """bool [N]: which images of a split the model classifies correctly."""
    labels = opened(source).dataset.labels(split)
    scores = scores_of(model, batches(source, model, split, np.arange(len(labels)), seed))
    return (scores.argmax(1).numpy() == labels).astype(bool)
