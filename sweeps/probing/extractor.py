"""What workers do for a FeatureSource: fill its store, lazily and in nested prefixes, and score what it holds."""

import copy
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise, repeat

import numpy as np
import torch
from torch import Tensor

from ddae import label_free, ridge
from ddae.backbones import Backbone, load_backbone
from ddae.datasets import Dataset, load_dataset
from ddae.features import extract, read_view
from ddae.pooling import pool
from ddae.probe import to_maps
from ddae.views import USUAL, quarter_turns
from storage.feature_store import NUM_STREAMS, FeatureStore, row_range
from storage.ledger import Ledger, content_key
from sweeps.probing.image_cache import ImageCache
from sweeps.probing.screening import Scored
from sweeps.probing.source import SHARD_ROWS, FeatureSource, Need, as_turned
from sweeps.search.task import pack, unpack

Stored = dict[str, list[str]]
"""column -> the names of its files that have rows of one shard"""
Gaps = dict[str, list[tuple[int, int]]]
"""block -> ranges of rows that it lacks, of the blocks that lack some"""


@dataclass(frozen=True)
class Extracted:
    """What filling a shard came to."""

    num_images: int
    """How many the shard has, whether they stood there before or not."""
    passes: float
    """Full forward passes of one image that it took."""


class Extractor:
    """One forward pass an image for all blocks that are needed."""

    def __init__(self, source: FeatureSource, backbone: Backbone | None = None, dataset: Dataset | None = None):
        """backbone, dataset: where they are loaded; images of a given dataset are read from its own files."""
        self.source, self.store = source, FeatureStore(source.store)
        self.backbone = backbone or load_backbone(source.backbone, source.settings)
        key = source.key
        self.dataset = dataset or load_dataset(
            source.dataset,
            self.backbone.image_size,
            source.data_root,
            key.split_seed,
            key.val_fraction,
            source.reading,
        )
        if (self.backbone.fingerprint, self.dataset.images.fingerprint) != (key.backbone, source.images):
            raise ValueError(
                f"{source.backbone} or {source.dataset} on {socket.gethostname()} is not the one the sweep was "
                "started with"
            )
        caches = source.cache_images and dataset is None
        self.images = ImageCache(source, self.dataset, self.backbone.image_size) if caches else None
        if self.images:
            self.dataset = replace(self.dataset, images=replace(self.dataset.images, read=self.images.read))
        self.passes, self.num_encoded = 0.0, 0
        self._described: set[tuple[int, int]] = set()

    def encode(self, need: Need, shard: int, stored: Stored | None = None) -> None:
        """Fill a shard of the latents of a need's images, which serve every timestep."""
        column, (start, stop) = self.source.latents(need.split, need.view), rows_of(need, shard)
        if self.store.missing(column, stop, start, stored[column] if stored else None):
            self._encode(need.split, need.view, start, stop)

    def extract(self, need: Need, shard: int, stored: Stored | None = None) -> Extracted:
        """Fill a shard of a need, passing no image again whose features stand in the store: its missing rows, each once
        for all blocks that miss it, cut where a gap begins or ends. Of several sweeps that want them one extracts, and
        the others wait.

        stored: what was listed of the shard; every column is listed where it is not given.
        """
        start, stop = rows_of(need, shard)
        before = self.passes
        if lacking := self._lacking(need, shard, need.blocks, stored):
            self._describe(need.draw, need.view)
            with self.store.claimed(folder_of(self.source, need), start, start + SHARD_ROWS):
                lacking = self._still_lacking(need, shard, lacking)
                edges = {edge for its_gaps in lacking.values() for gap in its_gaps for edge in gap}
                for first, last in pairwise(sorted(edges)):
                    blocks = [b for b, its in lacking.items() if any(i <= first and last <= j for i, j in its)]
                    if blocks:
                        self._extract(need, first, last, blocks)
        return Extracted(stop - start, self.passes - before)

    def ensure(self, need: Need) -> None:
        """Fill all shards of a need."""
        for shard, stored in enumerate(list_shards(self.store, columns_of(self.source, need), need.num_images)):
            self.extract(need, shard, stored)

    def read(self, need: Need, block: str, device: str = "cpu") -> Tensor:
        """float32 [num_images, C, g, g] from the store. Raises LookupError where it lacks some."""
        shards = self.store.read(self.source.column(need, block), need.num_images)
        return to_maps(shards, self.backbone.block(block).channels, device)

    def labels(self, need: Need, device: str = "cpu") -> Tensor:
        """int64 [num_images]."""
        return torch.from_numpy(self.dataset.labels(need.split)[: need.num_images]).to(device)

    def latents(self, split: str, view: int, start: int, stop: int) -> np.ndarray:
        """float16 [stop - start, C * S * S], from the store; what it lacks is encoded first."""
        column = self.source.latents(split, view)
        try:
            parts = self.store.read(column, stop, start)
        except LookupError:
            self._encode(split, view, start, stop)
            parts = self.store.read(column, stop, start)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode(self, split: str, view: int, start: int, stop: int) -> None:
        column, shard = self.source.latents(split, view), start // SHARD_ROWS * SHARD_ROWS
        with self.store.claimed(column.rpartition("/")[0], shard, shard + SHARD_ROWS):
            for first, last in self.store.missing(column, stop, start):
                key = replace(self.source.key, view=view)
                images = read_view(self.dataset, self.dataset.splits[split][first:last], key)
                self.store.write(column, first, self.backbone.encode(images).flatten(1).half().cpu().numpy())
                self.num_encoded += last - first

    def _lacking(self, need: Need, shard: int, blocks: Iterable[str], stored: Stored | None = None) -> Gaps:
        start, stop = rows_of(need, shard)
        columns = {block: self.source.column(need, block) for block in blocks}
        found = {
            block: self.store.missing(column, stop, start, stored[column] if stored else None)
            for block, column in columns.items()
        }
        return {block: gaps for block, gaps in found.items() if gaps}

    def _still_lacking(self, need: Need, shard: int, lacking: Gaps) -> Gaps:
        """What blocks lack once the shard is claimed: others may have published it meanwhile. The column that lacks the
        most, and of these the deepest block's, is listed alone; while it is as it was, no pass would get shorter."""

        def missing(block: str) -> tuple[int, float]:
            return sum(stop - start for start, stop in lacking[block]), self.backbone.block(block).flops_share

        most = max(lacking, key=missing)
        if self._lacking(need, shard, [most]) == {most: lacking[most]}:
            return lacking
        return self._lacking(need, shard, lacking)

    def _extract(self, need: Need, start: int, stop: int, blocks: list[str]) -> None:
        rows = self.dataset.splits[need.split][start:stop]
        key = replace(self.source.key, draw=need.draw, view=need.view)
        if self.images and need.split != "test":  # which is read once
            self.images.fill(need.split, start, stop)
        encoded = self.latents(need.split, need.view, start, stop) if self.source.encoder else None
        features = extract(self.backbone, self.dataset, rows, need.timestep, blocks, key, encoded=encoded)
        self.passes += len(rows) * max(self.backbone.block(block).flops_share for block in blocks)
        columns = [self.source.column(need, block) for block in features]
        with ThreadPoolExecutor(len(columns)) as together:  # a store at an address answers late
            list(together.map(self.store.write, columns, repeat(start), features.values()))

    def _describe(self, draw: int, view: int) -> None:
        """Say beside the features, for people, what made them and which images their rows are."""
        if (draw, view) in self._described:
            return
        source, folder = self.source, self.source.folder(draw, view)
        made_by = {"dataset": source.dataset, "backbone": source.backbone}
        self.store.describe(folder, made_by | asdict(replace(source.key, draw=draw, view=view)))
        for split, rows in self.dataset.splits.items():
            self.store.describe_rows(folder, split, {"image": rows, "label": self.dataset.labels(split)})
        self._described.add((draw, view))


@lru_cache(maxsize=2)
def opened(source: FeatureSource) -> Extractor:
    """The extractor of this process for the source, which loads network and dataset once; sources that differ in how
    views are augmented alone share them."""
    usual = replace(source, key=replace(source.key, augment=USUAL))
    if source == usual:
        return Extractor(source)
    extractor = copy.copy(opened(usual))
    extractor.source, extractor._described = source, set()
    return extractor


def encode_shard(source: FeatureSource, need: Need, shard: int, stored: Stored | None = None) -> None:
    opened(source).encode(need, shard, stored)


def extract_shard(source: FeatureSource, need: Need, shard: int, stored: Stored | None = None) -> Extracted:
    return opened(source).extract(need, shard, stored)


def screen(source: FeatureSource, need: Need, poolings: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Which images of a need of one block, that is filled, leave-one-out ridge classifies correctly at the block's best
    pooling, bool [num_images], and how many seconds that took; from the ledger, else computed and recorded there."""
    started = time.perf_counter()
    ledger = Ledger(source.ledger)
    key = content_key(features=source.key.asdict(), screened=asdict(need), poolings=poolings, version=ridge.VERSION)
    record = ledger.get(key)
    if record is None:
        extractor, [block] = opened(source), need.blocks
        data = extractor.read(need, block, source.fits_on), extractor.labels(need, source.fits_on)
        right = correct_at(*data, poolings, extractor.dataset.num_classes)
        record = {"correct": pack(right)}
        ledger.put(key, record)
    return unpack(record["correct"]), time.perf_counter() - started


def correct_at(maps: Tensor, labels: Tensor, poolings: Iterable[int], num_classes: int) -> np.ndarray:
    """bool [N]: which images leave-one-out ridge classifies correctly, at the best of the poolings."""
    correct = [ridge.leave_one_out(pool(maps, pooling), labels, num_classes) for pooling in poolings]
    return max(correct, key=np.mean)


def score(
    source: FeatureSource,
    needs: Mapping[str, Need],
    names: tuple[str, ...],
    num_labels: int,
    num_resamples: int,
) -> dict[str, Scored]:
    """block -> its label-free scores of these names, from features that are filled.

    needs: by the field of label_free.Features that they are read for. num_labels: how many labels, of the first
    images, the scores see that want some.
    """
    extractor = opened(source)
    first = needs["first"]
    labels = extractor.labels(replace(first, num_images=num_labels), source.fits_on) if num_labels else None
    num_classes = extractor.dataset.num_classes
    weights = label_free.draw_images(first.num_images, num_resamples).to(source.fits_on)
    scores = {}
    for block in first.blocks:
        features = read_features(extractor, needs, block, names)
        resampled = label_free.resample(features, weights, names, labels, num_classes)
        others = [name for name in names if name not in resampled]
        values = {name: float(each[0]) for name, each in resampled.items()}
        values |= label_free.measure(features, others, labels, num_classes)
        again = {name: each[1:] for name, each in resampled.items()}
        scores[block] = Scored({name: values[name] for name in names if name in values}, again)
    return scores


def read_features(
    extractor: Extractor, needs: Mapping[str, Need], block: str, names: Iterable[str]
) -> label_free.Features:
    """What the scores of these names read of a block."""
    source, [*blocks] = extractor.source, needs["first"].blocks
    reads = {field for name in names if name in label_free.SCORES for field in label_free.SCORES[name].reads}

    def mean(need: Need, of: str = block) -> Tensor:
        return pool(extractor.read(need, of, source.fits_on), 1).flatten(1)

    found = {field: mean(need) for field, need in needs.items() if field != "turned"}
    if "maps" in reads:
        found["maps"] = extractor.read(needs["first"], block, source.fits_on)
    if "turned" in reads:
        need, turned = needs["turned"], as_turned(source)
        rows = extractor.dataset.splits[need.split][: need.num_images]
        found["turned"] = pool(opened(turned).read(need, block, source.fits_on), 1).flatten(1)
        found["turns"] = torch.from_numpy(quarter_turns(rows, turned.key.noise_seed, need.view)).to(source.fits_on)
    at = blocks.index(block)
    beside = [blocks[n] for n in (at - 1, at + 1) if 0 <= n < len(blocks)] if "neighbours" in reads else []
    return label_free.Features(**found, neighbours=tuple(mean(needs["first"], other) for other in beside))


def list_shards(store: FeatureStore, columns: Sequence[str], num_images: int) -> list[Stored]:
    """What the columns are said to have of each shard of so many images; each column is listed once."""
    shards: list[Stored] = [{column: [] for column in columns} for _ in range(-(-num_images // SHARD_ROWS))]
    with ThreadPoolExecutor(NUM_STREAMS) as together:  # a store at an address answers late
        for column, names in zip(columns, together.map(store.names, columns), strict=True):
            for name in names:
                start, stop = row_range(name)
                for shard in shards[start // SHARD_ROWS : -(-stop // SHARD_ROWS)]:
                    shard[column].append(name)
    return shards


def columns_of(source: FeatureSource, need: Need) -> list[str]:
    return [source.column(need, block) for block in need.blocks]


def folder_of(source: FeatureSource, need: Need) -> str:
    """The folder that a need's columns lie in."""
    return source.column(need, "").rpartition("/")[0]


def num_shards(need: Need) -> int:
    return -(-need.num_images // SHARD_ROWS)


def rows_of(need: Need, shard: int) -> tuple[int, int]:
    """The shard's rows [start, stop)."""
    return shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, need.num_images)
