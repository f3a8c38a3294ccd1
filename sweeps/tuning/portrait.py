"""What the answer sees, finds alike and confuses; made where the model and the images are."""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from ddae.backbones import Backbone
from ddae.backbones.base import resize
from ddae.datasets import Dataset
from ddae.heads.base import Standardise
from ddae.noise import image_noise
from ddae.pooling import pool
from ddae.probe import Candidate, fit_probe, to_maps
from storage.feature_store import FeatureStore
from storage.results import Ledger, content_key
from sweeps.tuning.evaluation import read_features
from sweeps.tuning.plan import Plan

NUM_SAMPLES, NUM_QUERIES, NUM_NEIGHBOURS = 5, 5, 5
SAMPLE_SIZE, THUMBNAIL_SIZE = 128, 64
"""Sides in pixels, at most."""
MAX_NUMBERS = 2**26
"""Of the training features that neighbours are looked for among; 256 MiB."""
MAX_QUERIES = 512
"""Val images whose neighbours are counted."""
REFIT_SECONDS = 600
"""A head that took longer is not fitted again for its confusions."""


@dataclass(frozen=True)
class Neighbours:
    """Of val images, the first of each of a few classes: the training images whose features are nearest, by the cosine
    between standardised features."""

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
    """Of the neighbours of num_queries val images, those of the same class."""


@dataclass(frozen=True)
class Portrait:
    classes: tuple[str, ...]
    clean: list[np.ndarray]
    """Val images, uint8 [H, W, 3] each."""
    noised: list[np.ndarray]
    """As the network was given them; of latents the first three channels."""
    neighbours: Neighbours | None
    """None where the features are in the store no more."""
    predicted: np.ndarray | None
    """int [num_val]; None as well where the head takes long to fit."""


def portray(plan: Plan, backbone: Backbone, dataset: Dataset, cell: Candidate, fit_seconds: float) -> Portrait:
    """Nothing is extracted for it."""
    neighbours = predicted = None
    with suppress(LookupError):
        neighbours = find_neighbours(plan, dataset, cell)
        predicted = predictions(plan, cell) if fit_seconds <= REFIT_SECONDS else None
    clean, noised = samples(plan, backbone, dataset, cell.timestep)
    return Portrait(dataset.images.classes, clean, noised, neighbours, predicted)


def samples(
    plan: Plan, backbone: Backbone, dataset: Dataset, timestep: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The first val images, clean and with the very noise that their features were made with."""
    rows = dataset.splits["val"][:NUM_SAMPLES]
    images = dataset.images.read(rows)
    x0 = backbone.encode(images)
    x0 = x0.half().float() if plan.encoder else x0  # as latents are kept
    noised = backbone.noised(x0, image_noise(rows, backbone.encoder.shape, timestep, plan.key.noise_seed), timestep)
    shown = noised[:, :3] if noised.shape[1] >= 3 else noised[:, :1].expand(-1, 3, -1, -1)
    limit = shown.abs().flatten().float().quantile(0.99).clamp(min=1)
    bytes_ = ((shown / limit).clamp(-1, 1) * 127.5 + 127.5).round().byte().cpu()
    step = -(-bytes_.shape[-1] // SAMPLE_SIZE)  # pixels are left out, not averaged, which would take noise away
    return thumbnails(images, SAMPLE_SIZE), to_pictures(bytes_[..., ::step, ::step])


def find_neighbours(plan: Plan, dataset: Dataset, cell: Candidate) -> Neighbours:
    """Raises LookupError where the features are in the store no more."""
    width = plan.space.block(cell.block).channels * cell.pooling**2
    num_train = min(plan.rungs[-1], max(NUM_NEIGHBOURS, MAX_NUMBERS // width))
    num_queries = min(plan.num_val, MAX_QUERIES)
    train, val = (read_prefix(plan, cell, split, num) for split, num in (("train", num_train), ("val", num_queries)))
    standardise = Standardise(train)
    train, val = (normalize(standardise(features).flatten(1)) for features in (train, val))
    cosines = val @ train.T
    nearest = cosines.topk(min(NUM_NEIGHBOURS, num_train)).indices.numpy()
    labels, query_labels = plan.labels["train"][nearest], plan.labels["val"][:num_queries]
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


def predictions(plan: Plan, cell: Candidate) -> np.ndarray:
    """int [num_val]: what the cell, fitted on all training images, takes every val image for; from the ledger, else
    fitted again and recorded there. Raises LookupError where its features are in the store no more."""
    num_train = plan.rungs[-1]
    ledger, key = Ledger(f"{plan.store}/results"), content_key(predictions=plan.result_key(cell, num_train))
    record = ledger.get(key)
    if record is None:
        needed = ("train", num_train), ("val", plan.num_val)
        train, val = (read_features(plan, cell, split, num_images) for split, num_images in needed)
        head, result = fit_probe(cell, train, val, plan.num_classes, plan.seed)
        record = {"predicted": head(val[0])[head.settings.index(result.setting)].argmax(-1).tolist()}
        ledger.put(key, record)
    return np.array(record["predicted"])


def read_prefix(plan: Plan, cell: Candidate, split: str, num_images: int) -> Tensor:
    """float32 [num_images, C, p, p] of the images as they are."""
    shards = FeatureStore(plan.store).read(plan.column(cell.timestep, split, cell.block), num_images)
    return pool(to_maps(shards, plan.space.block(cell.block).channels), cell.pooling)


def thumbnails(images: Tensor, size: int = THUMBNAIL_SIZE) -> list[np.ndarray]:
    """uint8 [N, 3, H, W] -> [H, W, 3] each, no larger than size."""
    small = resize(images.float(), min(size, images.shape[-1]))
    return to_pictures(small.round().clamp(0, 255).byte())


def to_pictures(images: Tensor) -> list[np.ndarray]:
    return list(images.permute(0, 2, 3, 1).contiguous().numpy())
