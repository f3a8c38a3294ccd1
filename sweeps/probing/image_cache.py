"""Decoded images beside the store, so that a machine decodes each file once, not once a timestep."""

import errno
import logging
import os
import shutil
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from ddae.datasets import Dataset
from storage.feature_store import FeatureStore
from storage.ledger import content_key
from sweeps.probing.source import SHARD_ROWS, FeatureSource

VERSION = 1
"""Raise it when the same files would be decoded to other pixels."""
PIECE_BYTES = 2**26
"""Images that are decoded together."""
LEFT_BYTES = 2**30
"""Left free on the disk, for features and results, and as much again as the images take: none is kept that would take
it."""

log = logging.getLogger("sweeps")


class ImageCache:
    """The images of a dataset as uint8 columns of a store, one a split, in the split's order: a prefix of it would lie
    all over the dataset's own. Whoever is first to want a shard's rows decodes them, and others wait. Where they cannot
    be kept, one line says so, and they are decoded again and again.

    A store at an address has them in each machine's own folder for it.
    """

    def __init__(self, source: FeatureSource, dataset: Dataset, image_size: int):
        self.dataset, self.image_size, self.decode = dataset, image_size, dataset.images.read
        self.store = FeatureStore(FeatureStore(source.store).root)
        made_by = VERSION, dataset.images.fingerprint, image_size, source.key.split_seed, source.key.val_fraction
        self.folder = f"{source.name}/images-{content_key(made_by=made_by)[:16]}"
        self.num_decoded = 0
        self._works = True
        self._place = np.empty(len(dataset.images.labels), dtype=np.int64)
        for order in dataset.splits.values():
            self._place[order] = np.arange(len(order))

    def read(self, rows: np.ndarray) -> Tensor:
        """Do what Images.read does; rows that follow each other in a split come from the store, if it has them."""
        for split, order in self.dataset.splits.items():
            start = self._place[rows[0]] if len(rows) else 0
            if len(rows) and np.array_equal(order[start : start + len(rows)], rows):
                with suppress(LookupError, OSError):
                    pixels = np.concatenate(self.store.read(self._column(split), start + len(rows), start))
                    return torch.from_numpy(pixels).view(-1, 3, self.image_size, self.image_size)
        return self._decode(rows)

    def fill(self, split: str, start: int, stop: int) -> None:
        """Decode what the store lacks of a split's rows [start, stop), which lie in one shard."""
        column, shard = self._column(split), start // SHARD_ROWS * SHARD_ROWS
        try:
            if self._works and self.store.missing(column, stop, start):
                with self.store.claimed(column.rpartition("/")[0], shard, shard + SHARD_ROWS):
                    for gap in self.store.missing(column, stop, start):
                        self._fill(column, *gap, self.dataset.splits[split])
        except OSError as error:
            self._works = False
            log.warning(
                f"decoded images are not kept in {self.store.root / self.folder} ({error.strerror or error}), so that "
                "every timestep decodes them again; make room there, or give --no-cache-images"
            )

    def _fill(self, column: str, start: int, stop: int, order: np.ndarray) -> None:
        image_bytes = 3 * self.image_size**2
        num = max(1, PIECE_BYTES // image_bytes)
        (self.store.root / column).mkdir(parents=True, exist_ok=True)
        with os.scandir(self.store.root / column) as shards:
            left = LEFT_BYTES + sum(shard.stat().st_size for shard in shards)
        for first in range(start, stop, num):
            last = min(first + num, stop)
            if shutil.disk_usage(self.store.root).free < left + image_bytes * (last - first):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.store.write(column, first, self._decode(order[first:last]).flatten(1).numpy())

    def _decode(self, rows: np.ndarray) -> Tensor:
        self.num_decoded += len(rows)
        return self.decode(rows)

    def _column(self, split: str) -> str:
        return f"{self.folder}/split={split}/block=pixels"
