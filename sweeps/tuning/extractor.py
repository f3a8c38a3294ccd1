"""What works on a device: it fills the store, lazily and in nested prefixes, and looks at what it has filled."""

import logging
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from logging.handlers import BufferingHandler
from typing import Any

import numpy as np
import torch

from ddae import label_free
from ddae.backbones import load_backbone
from ddae.datasets import load_dataset
from ddae.features import extract, read_view
from ddae.heads import find_head
from ddae.pooling import pool
from ddae.probe import Candidate, ProbeResult, to_maps
from storage.feature_store import FeatureStore
from sweeps.tuning.evaluation import Features, evaluate, look
from sweeps.tuning.plan import Plan
from sweeps.tuning.portrait import Portrait, portray
from sweeps.tuning.space import Need

SHARD_ROWS = 512
"""Images between two publications: what a kill can lose."""


@dataclass(frozen=True)
class Work:
    """What a call to an extractor came to."""

    method: str
    result: Any
    started_seconds: float
    """Since the epoch, as ended_seconds."""
    ended_seconds: float
    passes: float
    """Full forward passes of one image that this took."""
    warnings: list[str]
    """Of the store; an actor's own lines reach nobody."""


class Extractor:
    """One forward pass an image for all blocks that are needed."""

    def __init__(self, plan: Plan, num_threads: int):
        torch.set_num_threads(num_threads)
        self.plan = plan
        self.store = FeatureStore(plan.store)
        self.backbone = load_backbone(plan.backbone, plan.settings)
        self.dataset = load_dataset(
            plan.dataset, self.backbone.image_size, plan.data_root, plan.key.split_seed, plan.key.val_fraction
        )
        found = self.backbone.fingerprint, self.dataset.images.fingerprint
        if found != (plan.key.backbone, plan.key.images):
            raise ValueError(
                f"{plan.backbone} or {plan.dataset} on {socket.gethostname()} is not the one the sweep was started with"
            )
        for draw in {0, 1, *plan.draws}:
            made_by = {"dataset": plan.dataset, "backbone": plan.backbone, **replace(plan.key, draw=draw).asdict()}
            self.store.describe(plan.folder(draw), made_by)
            for split, rows in self.dataset.splits.items():
                self.store.describe_rows(plan.folder(draw), split, {"image": rows, "label": self.dataset.labels(split)})
        self.passes, self.num_encoded = 0.0, 0
        self._warned = Warnings()

    def work(self, method: str, *args: Any) -> Work:
        """A call to one of the methods below."""
        started, passes = time.time(), self.passes
        result = getattr(self, method)(*args)
        return Work(method, result, started, time.time(), self.passes - passes, self._warned.drain())

    def encode(self, need: Need, shard: int) -> None:
        """Fill a shard of the latents of a need's images, which serve every timestep."""
        start, stop = rows_of(need, shard)
        self._latents(need, start, stop)

    def extract(self, need: Need, shard: int) -> int:
        """Fill a shard of a need, passing no image again whose features stand in the store: its missing rows, each once
        for all blocks that miss it, cut where a gap begins or ends. Of several sweeps that want them one extracts, and
        the others wait. Returns how many images the shard has."""
        start, stop = rows_of(need, shard)

        def gaps(blocks: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
            found = {block: self.store.missing(self._column(need, block), stop, start) for block in blocks}
            return {block: its_gaps for block, its_gaps in found.items() if its_gaps}

        if not (lacking := gaps(need.blocks)):
            return stop - start
        folder = f"{self.plan.folder(need.draw)}/t={need.timestep}/split={need.split}"
        with self.store.claimed(folder, start, start + SHARD_ROWS):
            lacking = gaps(lacking)
            edges = {edge for its_gaps in lacking.values() for gap in its_gaps for edge in gap}
            for first, last in pairwise(sorted(edges)):
                blocks = [b for b, its_gaps in lacking.items() if any(i <= first and last <= j for i, j in its_gaps)]
                if blocks:
                    self._extract(need, first, last, blocks)
        return stop - start

    def ensure(self, need: Need) -> None:
        """All shards of a need."""
        for shard in range(num_shards(need)):
            self.extract(need, shard)

    def look(self, need: Need) -> np.ndarray:
        """Of a need of one block that is filled: which images leave-one-out ridge gets right."""
        return look(self.plan, need)

    def label_free(self, first: Need, second: Need, noisier: Need, num_labels: int) -> dict[str, dict[str, float]]:
        """block -> score -> value, from two noise draws of the same images, each map's mean a channel, and a draw at
        the next timestep; of needs that are filled. num_labels: of the first images, for the scores that want some."""
        labels = torch.from_numpy(self.plan.labels[first.split][:num_labels]) if num_labels else None
        scores = {}
        for block in second.blocks:
            views = [self.store.read(self._column(need, block), need.num_images) for need in (first, second, noisier)]
            channels = self.plan.space.block(block).channels
            x, y, z = (pool(to_maps(view, channels), 1).flatten(1) for view in views)
            scores[block] = label_free.measure(x, y, z, labels, self.plan.num_classes)
        return scores

    def raw_pixels(self, head: str) -> ProbeResult:
        """The same head on the pixels alone, at most 32x32 of them, or 8x8 where they are tokens, on all training
        images."""
        plan = self.plan
        size = min(32 if find_head(head)[0].min_grid == 1 else 8, self.backbone.image_size)
        candidate = Candidate("pixels", 0, size, head)

        def read(split: str, num_images: int) -> Features:
            rows = self.dataset.splits[split][:num_images]
            pieces = []
            for first in range(0, num_images, SHARD_ROWS):
                images = self.dataset.images.read(rows[first : first + SHARD_ROWS]).float() / 255
                pieces.append(pool(images, min(size, images.shape[-1])))
            return torch.cat(pieces), torch.from_numpy(plan.labels[split][:num_images])

        return evaluate(plan, candidate, plan.rungs[-1], read)

    def portrait(self, cell: Candidate, fit_seconds: float) -> Portrait:
        """Of a cell that is fitted on all training images, which took so long."""
        return portray(self.plan, self.backbone, self.dataset, cell, fit_seconds)

    def _extract(self, need: Need, start: int, stop: int, blocks: list[str]) -> None:
        rows = self.dataset.splits[need.split][start:stop]
        key = replace(self.plan.key, draw=need.draw)
        encoded = self._latents(need, start, stop) if self.plan.encoder else None
        features = extract(self.backbone, self.dataset, rows, need.timestep, blocks, key, encoded=encoded)
        self.passes += len(rows) * self.plan.space.pass_share(blocks)
        columns = [self._column(need, block) for block in features]
        with ThreadPoolExecutor(len(columns)) as together:  # a store at an address answers late
            list(together.map(self.store.write, columns, repeat(start), features.values()))

    def _latents(self, need: Need, start: int, stop: int) -> np.ndarray:
        """float16 [stop - start, C * S * S], from the store; what it lacks is encoded first."""
        column = self.plan.latents(need.split, need.draw)
        if self.store.missing(column, stop, start):
            shard = start // SHARD_ROWS * SHARD_ROWS
            with self.store.claimed(column, shard, shard + SHARD_ROWS):
                for first, last in self.store.missing(column, stop, start):
                    key = replace(self.plan.key, draw=need.draw)
                    images = read_view(self.dataset, self.dataset.splits[need.split][first:last], key)
                    self.store.write(column, first, self.backbone.encode(images).flatten(1).half().cpu().numpy())
                    self.num_encoded += last - first
        return np.concatenate(self.store.read(column, stop, start))

    def _column(self, need: Need, block: str) -> str:
        return self.plan.column(need.timestep, need.split, block, need.draw)


class Warnings(BufferingHandler):
    """What the store warns of in this process, kept until somebody asks."""

    def __init__(self) -> None:
        super().__init__(capacity=10**6)
        logging.getLogger("storage").addHandler(self)

    def drain(self) -> list[str]:
        messages = [record.getMessage() for record in self.buffer]
        self.flush()
        return messages


def num_shards(need: Need) -> int:
    return -(-need.num_images // SHARD_ROWS)


def rows_of(need: Need, shard: int) -> tuple[int, int]:
    """[start, stop)."""
    return shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, need.num_images)
