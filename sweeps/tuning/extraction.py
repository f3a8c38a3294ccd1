"""Long-lived actors that own a device and fill the store, lazily and in nested prefixes."""

import time
from dataclasses import replace

import ray
import torch

from ddae import label_free
from ddae.backbones import load_backbone
from ddae.datasets import load_dataset
from ddae.features import extract
from ddae.pooling import pool
from ddae.probe import Candidate, ProbeResult, to_maps
from storage.feature_store import FeatureStore
from sweeps.tuning.evaluation import Features, evaluate
from sweeps.tuning.plan import Plan

SHARD_ROWS = 512
"""Images between two publications: what a kill can lose."""


class Extractor:
    """One forward pass an image for all blocks, whoever asks first. A timestep belongs to one extractor, so no two
    passes race for one shard."""

    def __init__(self, plan: Plan, num_threads: int):
        torch.set_num_threads(num_threads)
        self.plan = plan
        self.store = FeatureStore(plan.store)
        self.backbone = load_backbone(plan.backbone, plan.device)
        self.dataset = load_dataset(
            plan.dataset, self.backbone.image_size, plan.data_root, plan.key.split_seed, plan.key.val_fraction
        )
        found = self.backbone.fingerprint, self.dataset.images.fingerprint
        if found != (plan.key.backbone, plan.key.images):
            raise ValueError(
                f"{plan.backbone} or {plan.dataset} on this machine is not the one the sweep was started with"
            )
        self.store.describe(plan.folder(), {"dataset": plan.dataset, "backbone": plan.backbone, **plan.key.asdict()})
        for split, rows in self.dataset.splits.items():
            self.store.describe_rows(plan.folder(), split, {"image": rows, "label": self.dataset.labels(split)})
        self.busy: list[tuple[float, float]] = []
        self.num_extracted = 0

    def ensure(self, timestep: int, split: str, num_images: int, draw: int = 0) -> None:
        """Make the first num_images rows of a split stand in the store, for every block of the plan."""
        started = time.time()
        ranges: dict[tuple[int, int], list[str]] = {}
        for block in self.plan.space.blocks:
            for gap in self.store.missing(self.plan.column(timestep, split, block.name, draw), num_images):
                ranges.setdefault(gap, []).append(block.name)
        for (start, stop), blocks in sorted(ranges.items()):
            for first in range(start, stop, SHARD_ROWS):
                self._extract(timestep, split, first, min(first + SHARD_ROWS, stop), blocks, draw)
        self.busy.append((started, time.time()))

    def screen(self, timestep: int) -> list[ProbeResult]:
        """Closed-form ridge on the first rung's images, one a block."""
        pooling = self.plan.screen_pooling
        cells = [Candidate(block.name, timestep, pooling, "ridge") for block in self.plan.space.blocks]
        return [self.probe(cell, self.plan.rungs[0]) for cell in cells]

    def label_free(self, timestep: int) -> dict[str, dict[str, float]]:
        """block -> score -> value, from two noise draws of the first training images."""
        num_images = self.plan.num_label_free
        for draw in (0, 1):
            self.ensure(timestep, "train", num_images, draw)
        started = time.time()
        scores = {}
        for block in self.plan.space.blocks:
            columns = [self.plan.column(timestep, "train", block.name, draw) for draw in (0, 1)]
            maps = [to_maps(self.store.read(column, num_images), block.channels) for column in columns]
            scores[block.name] = label_free.measure(*(pool(map, 1).flatten(1) for map in maps))
        self.busy.append((started, time.time()))
        return scores

    def raw_pixels(self, head: str) -> ProbeResult:
        """The same head on the pixels alone, at most 32x32 of them, on all training images."""
        started = time.time()
        plan = self.plan
        size = min(32, self.backbone.image_size)
        candidate = Candidate("pixels", 0, size, head)

        def read(split: str, num_images: int) -> Features:
            rows = self.dataset.splits[split][:num_images]
            pieces = []
            for first in range(0, num_images, SHARD_ROWS):
                images = self.dataset.images.read(rows[first : first + SHARD_ROWS]).float() / 255
                pieces.append(pool(images, min(size, images.shape[-1])))
            return torch.cat(pieces), torch.from_numpy(plan.labels[split][:num_images])

        result = evaluate(plan, candidate, plan.rungs[-1], read)
        self.busy.append((started, time.time()))
        return result

    def probe(self, candidate: Candidate, num_images: int) -> ProbeResult:
        """A candidate outside the search."""
        self.ensure(candidate.timestep, "train", num_images)
        self.ensure(candidate.timestep, "val", self.plan.num_val)
        started = time.time()
        result = evaluate(self.plan, candidate, num_images)
        self.busy.append((started, time.time()))
        return result

    def report(self) -> tuple[list[tuple[float, float]], int]:
        """Wall-clock intervals of work, and the number of forward passes run."""
        return self.busy, self.num_extracted

    def _extract(self, timestep: int, split: str, start: int, stop: int, blocks: list[str], draw: int) -> None:
        rows = self.dataset.splits[split][start:stop]
        features = extract(self.backbone, self.dataset, rows, timestep, blocks, replace(self.plan.key, draw=draw))
        self.num_extracted += len(rows)
        for block, values in features.items():
            self.store.write(self.plan.column(timestep, split, block, draw), start, values)


def start_extractors(plan: Plan) -> list[ray.actor.ActorHandle]:
    """One a GPU where there are any, else one a core; they hold no CPU, because trials wait while they work."""
    resources = ray.cluster_resources()
    on_gpu = plan.device.startswith("cuda")
    num_actors = min(max(1, int(resources.get("GPU" if on_gpu else "CPU", 1))), len(plan.space.timesteps))
    actor = ray.remote(Extractor).options(num_cpus=0, num_gpus=int(on_gpu), max_restarts=2, max_task_retries=2)
    return [actor.remote(plan, 1) for _ in range(num_actors)]


def extractor_of(plan: Plan, extractors: list, timestep: int):
    """The extractor that a timestep belongs to."""
    return extractors[plan.space.timesteps.index(timestep) % len(extractors)]
