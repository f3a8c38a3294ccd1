"""Long-lived actors that own a device and fill the store, lazily and in nested prefixes."""

import logging
import time
from dataclasses import replace
from itertools import pairwise
from logging.handlers import BufferingHandler

import numpy as np
import ray
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
from sweeps.tuning.space import Need

SHARD_ROWS = 512
"""Images between two publications: what a kill can lose."""

MAX_RESTARTS = 20
"""Of an actor or a trial whose process or machine dies."""


class Extractor:
    """One forward pass an image for all blocks that are needed. Of every need each extractor fills its own shards, so
    all of them work at one timestep and no two passes race for one shard.

    place: of num_extractors, which are all asked for the same needs.
    """

    def __init__(self, plan: Plan, num_threads: int, place: int = 0, num_extractors: int = 1):
        torch.set_num_threads(num_threads)
        self.plan, self.place, self.num_extractors = plan, place, num_extractors
        self.store = FeatureStore(plan.store)
        self.backbone = load_backbone(plan.backbone, plan.settings)
        self.dataset = load_dataset(
            plan.dataset, self.backbone.image_size, plan.data_root, plan.key.split_seed, plan.key.val_fraction
        )
        found = self.backbone.fingerprint, self.dataset.images.fingerprint
        if found != (plan.key.backbone, plan.key.images):
            raise ValueError(
                f"{plan.backbone} or {plan.dataset} on this machine is not the one the sweep was started with"
            )
        for draw in {0, 1, *plan.draws}:
            made_by = {"dataset": plan.dataset, "backbone": plan.backbone, **replace(plan.key, draw=draw).asdict()}
            self.store.describe(plan.folder(draw), made_by)
            for split, rows in self.dataset.splits.items():
                self.store.describe_rows(plan.folder(draw), split, {"image": rows, "label": self.dataset.labels(split)})
        self.busy: list[tuple[float, float]] = []
        self.new_passes = self.look_seconds = 0.0
        self.new_encodings = 0
        self._warned = BufferingHandler(capacity=10**6)
        logging.getLogger("storage").addHandler(self._warned)

    def encode(self, need: Need) -> None:
        """Fill this extractor's part of the latents of a need's images, which serve every timestep."""
        started = time.time()
        for start in range(self.place * SHARD_ROWS, need.num_images, self.num_extractors * SHARD_ROWS):
            self._latents(need, start, min(start + SHARD_ROWS, need.num_images))
        self.busy.append((started, time.time()))

    def ensure(self, need: Need) -> None:
        """Fill this extractor's part of a need, passing no image again whose features stand in the store."""
        started = time.time()
        gaps = [gap for block in need.blocks for gap in self.store.missing(self._column(need, block), need.num_images)]
        first_owner = self.plan.space.timesteps.index(need.timestep) + need.draw
        for shard in range(-(-need.num_images // SHARD_ROWS)):
            start, stop = shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, need.num_images)
            mine = (shard + first_owner) % self.num_extractors == self.place
            if mine and any(a < stop and start < b for a, b in gaps):
                self._extract_shard(need, start, stop)
        self.busy.append((started, time.time()))

    def look(self, need: Need) -> np.ndarray:
        """Of a need of one block that is filled: which images leave-one-out ridge gets right."""
        started = time.time()
        right = look(self.plan, need)
        self.busy.append((started, time.time()))
        self.look_seconds += time.time() - started
        return right

    def label_free(self, need: Need) -> dict[str, dict[str, float]]:
        """block -> score -> value, from the need's noise draw and the one before it; of needs that are filled."""
        started = time.time()
        needs = replace(need, draw=need.draw - 1), need
        scores = {}
        for block in need.blocks:
            views = [self.store.read(self._column(one, block), need.num_images) for one in needs]
            maps = [to_maps(view, self.plan.space.block(block).channels) for view in views]
            scores[block] = label_free.measure(*(pool(map, 1).flatten(1) for map in maps))
        self.busy.append((started, time.time()))
        return scores

    def raw_pixels(self, head: str) -> ProbeResult:
        """The same head on the pixels alone, at most 32x32 of them, or 8x8 where they are tokens, on all training
        images."""
        started = time.time()
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

        result = evaluate(plan, candidate, plan.rungs[-1], read)
        self.busy.append((started, time.time()))
        return result

    def report(self) -> tuple[list[tuple[float, float]], float, float]:
        """Wall-clock intervals of work, the full forward passes run, and the seconds of looks."""
        return self.busy, self.new_passes, self.look_seconds

    def warnings(self) -> list[str]:
        """What the store has warned of since the last call; an actor's own lines reach nobody."""
        messages = [record.getMessage() for record in self._warned.buffer]
        self._warned.flush()
        return messages

    def _extract_shard(self, need: Need, start: int, stop: int) -> None:
        """The missing rows of a shard, each once for all blocks that miss it, cut where a gap begins or ends. Of
        several sweeps that want them one extracts, and the others wait."""
        folder = f"{self.plan.folder(need.draw)}/t={need.timestep}/split={need.split}"
        with self.store.claimed(folder, start, start + SHARD_ROWS):
            gaps = {block: self.store.missing(self._column(need, block), stop, start) for block in need.blocks}
            edges = {edge for block_gaps in gaps.values() for gap in block_gaps for edge in gap}
            for first, last in pairwise(sorted(edges)):
                blocks = [block for block in need.blocks if any(a <= first and last <= b for a, b in gaps[block])]
                if blocks:
                    self._extract(need, first, last, blocks)

    def _extract(self, need: Need, start: int, stop: int, blocks: list[str]) -> None:
        rows = self.dataset.splits[need.split][start:stop]
        key = replace(self.plan.key, draw=need.draw)
        encoded = self._latents(need, start, stop) if self.plan.encoder else None
        features = extract(self.backbone, self.dataset, rows, need.timestep, blocks, key, encoded=encoded)
        self.new_passes += len(rows) * self.plan.space.pass_share(blocks)
        for block, values in features.items():
            self.store.write(self._column(need, block), start, values)

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
                    self.new_encodings += last - first
        return np.concatenate(self.store.read(column, stop, start))

    def _column(self, need: Need, block: str) -> str:
        return self.plan.column(need.timestep, need.split, block, need.draw)


def start_extractors(plan: Plan) -> list[ray.actor.ActorHandle]:
    """One a GPU where there are any, else one a core; they hold no CPU, because trials wait while they work."""
    resources = ray.cluster_resources()
    on_gpu = plan.settings.device.startswith("cuda")
    num_actors = max(1, int(resources.get("GPU" if on_gpu else "CPU", 1)))
    actor = ray.remote(Extractor).options(
        num_cpus=0, num_gpus=int(on_gpu), max_restarts=MAX_RESTARTS, max_task_retries=-1
    )
    return [actor.remote(plan, 1, place, num_actors) for place in range(num_actors)]


def fill(plan: Plan, extractors: list, needs: list[Need]) -> None:
    """Wait until all extractors together have filled the needs."""
    for method, its_needs in (("encode", encodings(plan, needs)), ("ensure", needs)):
        ray.get([getattr(extractor, method).remote(need) for need in its_needs for extractor in extractors])


def encodings(plan: Plan, needs: list[Need]) -> list[Need]:
    """The needs whose latents are those of all: the longest of every view of a split. None of a model of pixels."""
    by_length = sorted(needs, key=lambda need: need.num_images) if plan.encoder else []
    return list({plan.latents(need.split, need.draw): need for need in by_length}.values())
