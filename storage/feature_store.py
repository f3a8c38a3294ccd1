"""Columns of float16 rows as Arrow shards: append-only, checksummed, memory-mapped, read without a copy.

A column is a folder; a shard is one Arrow IPC file in it, `<start>-<stop>.<checksum>.arrow`, that holds one record
batch with the rows [start, stop). The checksum is of every byte and of the place, because Arrow aborts the process on
some damaged headers, and because a sound shard of another column is as wrong here. One rename makes both visible.
Hive-style folder names (`t=60/split=train/block=mid`) let pyarrow.dataset, polars and DuckDB find columns too.
"""

import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from filelock import FileLock

MAX_SHARD_ROWS = 4096
FIELD = "features"
SHARD_NAME = re.compile(r"(\d{8})-(\d{8})(?:\.([0-9a-f]{32}))?\.arrow")

log = logging.getLogger("storage")


class FeatureStore:
    """Columns under one root folder. Any number of processes may read and write."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def missing(self, column: str, num_rows: int, first: int = 0) -> list[tuple[int, int]]:
        """The ranges of rows in [first, num_rows) that no sound shard holds; a damaged shard is deleted with a
        warning."""
        gaps, covered = [], first
        for path in self._shards(column):
            start, stop = _range(path)
            if start >= num_rows:
                break
            if stop <= covered or _sound(self.root, path) is None:
                continue
            if start > covered:
                gaps.append((covered, start))
            covered = stop
        if covered < num_rows:
            gaps.append((covered, num_rows))
        return gaps

    def write(self, column: str, start: int, rows: np.ndarray) -> None:
        """Publish rows [start, start + len(rows)) of a column, float16 [N, D]; readers see all of them or none."""
        if rows.dtype != np.float16 or rows.ndim != 2 or not rows.size:
            raise ValueError(f"column={column!r} takes float16 [N, D], not {rows.dtype} {rows.shape}")
        folder = self.root / column
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(rows), MAX_SHARD_ROWS):
            shard = np.ascontiguousarray(rows[first : first + MAX_SHARD_ROWS])
            stop = start + first + len(shard)
            _write_shard(self.root, folder / f"{start + first:08d}-{stop:08d}", shard)

    def read(self, column: str, num_rows: int, first: int = 0) -> list[np.ndarray]:
        """Rows [first, num_rows) as read-only float16 [n, D] views of the memory-mapped shards, in order.

        Raises LookupError where rows are missing.
        """
        views: list[np.ndarray] = []
        covered = first
        for path in self._shards(column):
            start, stop = _range(path)
            if start > covered or covered >= num_rows:
                break
            if stop > covered and (rows := _sound(self.root, path)) is not None:
                views.append(rows[covered - start : num_rows - start])
                covered = min(stop, num_rows)
        if covered < num_rows:
            raise LookupError(f"column={column!r} lacks row {covered} in {self.root}; {num_rows} were asked for")
        return views

    @contextmanager
    def claimed(self, folder: str, start: int, stop: int) -> Iterator[None]:
        """One process at a time may write rows [start, stop) of the columns under a folder; what a killed one has left
        half-written is deleted."""
        path = self.root / folder / f".{start:08d}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            for part in path.parent.rglob(".[0-9]*.part"):
                if start <= int(part.name[1:9]) < stop:
                    part.unlink(missing_ok=True)
            yield

    def describe(self, folder: str, record: dict) -> None:
        """What a folder of columns holds, for people: _key.json, written once."""
        path = self.root / folder / "_key.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with published(path) as part:
                part.write_text(json.dumps(record, indent=1))

    def describe_rows(self, folder: str, split: str, columns: dict[str, np.ndarray]) -> None:
        """What the rows of a split are (image number, label): _rows-<split>.parquet, written once.

        Apart from the features, because DuckDB refuses Arrow tables with a float16 column.
        """
        path = self.root / folder / f"_rows-{split}.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with published(path) as part:
                pq.write_table(pa.table(columns), part)

    def export_parquet(self, column: str, num_rows: int, destination: Path, extra: dict[str, np.ndarray]) -> None:
        """The first num_rows rows as Parquet, with extra columns (row numbers, labels, ...) beside the features."""
        features = np.concatenate(self.read(column, num_rows))
        table = pa.table({name: values[:num_rows] for name, values in extra.items()})
        values = pa.array(features.astype(np.float32).ravel())
        pq.write_table(table.append_column(FIELD, pa.ListArray.from_arrays(_offsets(features), values)), destination)

    def _shards(self, column: str) -> list[Path]:
        folder = self.root / column
        return sorted(path for path in folder.glob("*.arrow") if SHARD_NAME.fullmatch(path.name))


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A scratch path that becomes `path` when the block ends, so that a reader sees a whole file or none."""
    with scratch(path) as part:
        yield part
        os.replace(part, path)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A hidden path beside `path`, of which nothing is left when the block ends; the machine's trouble names `path`."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _write_shard(root: Path, place: Path, rows: np.ndarray) -> None:
    values = pa.Array.from_buffers(pa.float16(), rows.size, [None, pa.py_buffer(rows)])
    batch = pa.record_batch([pa.FixedSizeListArray.from_arrays(values, rows.shape[1])], [FIELD])
    with scratch(place) as part:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        with pa.memory_map(str(part)) as written:
            checksum = _checksum(root, place, written.read_buffer())
        os.replace(part, f"{place}.{checksum}.arrow")


def _range(path: Path) -> tuple[int, int]:
    start, stop = path.name.split(".")[0].split("-")
    return int(start), int(stop)


def _checksum(root: Path, place: Path, data: pa.Buffer) -> str:
    xxh3 = xxhash.xxh3_128(place.relative_to(root).as_posix().encode())
    xxh3.update(data)
    return xxh3.hexdigest()


def _sound(root: Path, path: Path) -> np.ndarray | None:
    """The rows of a shard, checked once a process; None after deleting a damaged one, of which one process warns."""
    try:
        return _open_checked(root, path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    except ValueError as error:
        with suppress(FileNotFoundError):
            path.unlink()
            log.warning("damaged shard %s (%s); it is deleted and will be made again", path, error)
        return None


@lru_cache(maxsize=4096)
def _open_checked(root: Path, path: Path, mtime_ns: int) -> np.ndarray:
    name, _, checksum = path.name.removesuffix(".arrow").partition(".")
    if not checksum:
        raise ValueError("it has no checksum")
    data = pa.memory_map(str(path)).read_buffer()
    if _checksum(root, path.with_name(name), data) != checksum:
        raise ValueError("its checksum does not match")
    column = pa.ipc.open_file(data).get_batch(0).column(0)
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)


def _offsets(features: np.ndarray) -> np.ndarray:
    return np.arange(len(features) + 1, dtype=np.int32) * features.shape[1]
