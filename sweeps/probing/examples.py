"""Images that show what a cell sees, finds alike and confuses; made where the model and the images are."""

import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddae import units
from ddae.backbones.base import resize
from ddae.datasets import Dataset
from ddae.features import width
from ddae.heads import find_head
from ddae.noise import image_noise
from ddae.pooling import pool
from ddae.scaling import Standardise, unit_rows
from storage.ledger import Ledger, content_key
from sweeps.probing import kept_head
from sweeps.probing.extractor import SHARD_ROWS, Extractor, opened
from sweeps.probing.source import Need
from sweeps.probing.space import Cell
from sweeps.probing.task import ProbeTask
from sweeps.search.task import Result

NUM_SAMPLES, NUM_QUERIES, NUM_NEIGHBOURS = 5, 5, 5
SAMPLE_SIZE, THUMBNAIL_SIZE = 128, 64
"""Sides in pixels, at most."""
MAX_NUMBERS = 2**26
"""Numbers of the training features among which neighbours are looked for; 256 MiB."""
MAX_QUERIES = 512
"""Val images whose neighbours are counted."""
REFIT_SECONDS = 600
"""A head that took longer is not fitted again for its confusions."""


@dataclass(frozen=True)
class Neighbours:
    """Val images, the first of each of a few classes, and the training images whose features are nearest, by the
    cosine between standardised features."""

    queries: list[np.ndarray]
    """uint8 [H, W, 3] each."""
    query_labels: np.ndarray
    nearest: list[list[np.ndarray]]
    """Nearest first."""
    labels: np.ndarray
    """[queries, neighbours]"""
    num_searched: int
    num_queries: int
    share_alike: float
    """Share of the neighbours of num_queries val images that are of the same class."""


@dataclass(frozen=True)
class Examples:
    classes: tuple[str, ...]
    clean: list[np.ndarray]
    """Val images, uint8 [H, W, 3] each."""
    noised: list[np.ndarray]
    """The same as the network was given them; of latents the first three channels."""
    neighbours: Neighbours | None
    """None where the features are in the store no more."""
    predicted: np.ndarray | None
    """int [num_val]: the classes that the cell predicts; None also where its head takes long to fit."""


def find_examples(task: ProbeTask, cell: Cell, fit_seconds: float) -> Examples:
    """Examples for a cell that is fitted on all training images, which took so long. Nothing is extracted."""
    extractor, neighbours, predicted = opened(task.source), None, None
    with suppress(LookupError):
        neighbours = find_neighbours(task, extractor.dataset, cell)
        predicted = predictions(task, cell) if fit_seconds <= REFIT_SECONDS else None
    clean, noised = samples(extractor, cell.timestep)
    return Examples(extractor.dataset.images.classes, clean, noised, neighbours, predicted)


def samples(extractor: Extractor, timestep: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The first val images, clean and with the very noise that their features were made with."""
    source, backbone, dataset = extractor.source, extractor.backbone, extractor.dataset
    rows = dataset.splits["val"][:NUM_SAMPLES]
    images = dataset.images.read(rows)
    x0 = backbone.encode(images)
    x0 = x0.half().float() if source.encoder else x0  # as latents are kept
    noise = image_noise(rows, backbone.encoder.shape, timestep, source.key.noise_seed)
    noised = backbone.noised(x0, noise, timestep)
    shown = noised[:, :3] if noised.shape[1] >= 3 else noised[:, :1].expand(-1, 3, -1, -1)
    limit = shown.abs().flatten().float().quantile(0.99).clamp(min=1)
    pixels = ((shown / limit).clamp(-1, 1) * 127.5 + 127.5).round().byte().cpu()
    step = -(-pixels.shape[-1] // SAMPLE_SIZE)  # pixels are left out, not averaged, which would take noise away
    return thumbnails(images, SAMPLE_SIZE), to_pictures(pixels[..., ::step, ::step])


def find_neighbours(task: ProbeTask, dataset: Dataset, cell: Cell) -> Neighbours:
    """Raises LookupError where the features are in the store no more."""
    stored = width(task.space.block(cell.block), task.source.key.pooling)
    num_train = min(task.num_train, max(NUM_NEIGHBOURS, MAX_NUMBERS // stored))
    num_queries = min(task.num_val, MAX_QUERIES)
    train, val = (first_view(task, cell, split, num) for split, num in (("train", num_train), ("val", num_queries)))
    standardise = Standardise(train)
    train, val = (unit_rows(standardise(features)) for features in (train, val))
    nearest = (val @ train.T).topk(min(NUM_NEIGHBOURS, num_train)).indices.numpy()
    labels, query_labels = task.labels["train"][nearest], task.labels["val"][:num_queries]
    _, first = np.unique(query_labels, return_index=True)
    shown = np.sort(first)[:NUM_QUERIES]
    rows = {split: dataset.splits[split] for split in ("train", "val")}
    return Neighbours(
        thumbnails(dataset.images.read(rows["val"][shown])),
        query_labels[shown],
        [thumbnails(dataset.images.read(rows["train"][nearest[query]])) for query in shown],
        labels[shown],
        num_train,
        num_queries,
        float((labels == query_labels[:, None]).mean()),
    )


def first_view(task: ProbeTask, cell: Cell, split: str, num_images: int) -> Tensor:
    """float32 [num_images, C, p, p] of the images as they are. Raises LookupError where the store lacks some."""
    need = Need(cell.timestep, split, num_images, (cell.block,))
    return pool(opened(task.source).read(need, cell.block), cell.pooling)


def predictions(task: ProbeTask, cell: Cell) -> np.ndarray:
    """int [num_val]: the classes that the cell, fitted on all training images, predicts for val; from the ledger, else
    from the head that was kept, or fitted again, and recorded there. Raises LookupError where its features are in the
    store no more."""
    ledger, key = Ledger(task.source.ledger), content_key(predictions=task.key(cell, task.num_train))
    record = ledger.get(key)
    if record is None:
        fitted = kept_head.find(task, cell) or task.fit(cell, *task.read([cell], task.num_train))
        record = {"predicted": fitted.predicted.tolist()}
        ledger.put(key, record)
    return np.array(record["predicted"])


def raw_pixels(task: ProbeTask, head: str) -> Result:
    """The same head on the pixels alone, at most 32x32 of them, or 8x8 where they are tokens, fitted on all training
    images; from the ledger, else recorded there."""
    extractor, ledger = opened(task.source), Ledger(task.source.ledger)
    size = min(32 if find_head(head)[0].min_grid == 1 else 8, extractor.backbone.image_size)
    cell = Cell("pixels", 0, size, head)
    key = task.key(cell, task.num_train)
    record = ledger.get(key)
    if record is not None:
        return Result(**record)
    started = time.time()
    if (held := 3 * 4 * 3 * size**2 * task.num_train) > task.memory:
        raise ValueError(f"the pixels of all images would take {units.size(held)}, of {units.size(task.memory)}")
    train, val = (
        (
            {size: pixels_of(extractor.dataset, split, num, size).to(task.device)},
            torch.from_numpy(task.labels[split][:num]).to(task.device),
        )
        for split, num in (("train", task.num_train), ("val", task.num_val))
    )
    result = task.result(task.fit(cell, train, val), started)
    ledger.put(key, result.as_record())
    return result


def pixels_of(dataset: Dataset, split: str, num_images: int, size: int) -> Tensor:
    """float32 [num_images, 3, size, size] in [0, 1], averaged down where images are larger."""
    rows = dataset.splits[split][:num_images]
    pieces = []
    for first in range(0, num_images, SHARD_ROWS):
        images = dataset.images.read(rows[first : first + SHARD_ROWS]).float() / 255
        pieces.append(pool(images, min(size, images.shape[-1])))
    return torch.cat(pieces)


def thumbnails(images: Tensor, size: int = THUMBNAIL_SIZE) -> list[np.ndarray]:
    """uint8 [N, 3, H, W] -> [H, W, 3] each, no larger than size."""
    small = resize(images.float(), min(size, images.shape[-1]))
    return to_pictures(small.round().clamp(0, 255).byte())


def to_pictures(images: Tensor) -> list[np.ndarray]:
    return list(images.permute(0, 2, 3, 1).contiguous().numpy())
