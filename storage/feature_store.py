"""Columns of float16 rows as Arrow shards: append-only, checksummed, memory-mapped, read without a copy.

A column is a folder; a shard is one Arrow IPC file in it that holds one record batch with the rows
[start, stop) that its name gives. Its checksum travels in its own schema, so one rename makes both visible.
Hive-style folder names (`t=60/split=train/block=mid`) let pyarrow.dataset, polars and DuckDB find columns too.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from filelock import FileLock

MAX_SHARD_ROWS = 4096
FIELD = "features"

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
            if stop <= covered or _sound(path) is None:
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
            _write_shard(folder / f"{start + first:08d}-{stop:08d}.arrow", shard)

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
            if stop > covered and (rows := _sound(path)) is not None:
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
        return sorted(folder.glob("[0-9]*.arrow")) if folder.is_dir() else []


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A scratch path that becomes `path` when the block ends, so that a reader sees a whole file or none; an
    exception leaves nothing."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_shard(path: Path, rows: np.ndarray) -> None:
    values = pa.Array.from_buffers(pa.float16(), rows.size, [None, pa.py_buffer(rows)])
    array = pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
    schema = pa.schema([pa.field(FIELD, array.type)], metadata={"xxh3_128": xxhash.xxh3_128_hexdigest(rows.data)})
    with published(path) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([array], schema=schema))


def _range(path: Path) -> tuple[int, int]:
    start, _, stop = path.stem.partition("-")
    return int(start), int(stop)


def _sound(path: Path) -> np.ndarray | None:
    """The rows of a shard, checked once a process; None after deleting a damaged one."""
    try:
        return _open_checked(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's trouble (no permission, no file handles, ...), not the shard's
        log.warning("damaged shard %s (%s); it is deleted and will be made again", path, error)
        path.unlink(missing_ok=True)
        return None


@lru_cache(maxsize=4096)
def _open_checked(path: Path, mtime_ns: int) -> np.ndarray:
    start, stop = _range(path)
    with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches, not 1")
        digest = (reader.schema.metadata or {}).get(b"xxh3_128", b"").decode()
        column = reader.get_batch(0).column(0)
    if len(column) != stop - start or column.null_count:
        raise ValueError(f"{len(column)} rows, not {stop - start}")
    rows = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)
    if xxhash.xxh3_128_hexdigest(rows.data) != digest:
        raise ValueError("its checksum does not match")
    return rows


def _offsets(features: np.ndarray) -> np.ndarray:
    return np.arange(len(features) + 1, dtype=np.int32) * features.shape[1]
