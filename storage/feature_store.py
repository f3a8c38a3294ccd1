"""Columns of float16 or uint8 rows as Arrow shards: append-only, checksummed, memory-mapped, read without a copy.

A column is a folder; a shard is one Arrow IPC file in it, `<start>-<stop>.<checksum>.arrow`, that holds one record
batch with the rows [start, stop). The checksum is of every byte and of the place, because Arrow aborts the process on
some damaged headers, and because a sound shard of another column is as wrong here. One rename makes both visible.
Hive-style folder names (`t=60/split=train/block=mid`) let pyarrow.dataset, polars and DuckDB find columns too.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from storage.files import locked, published, scratch
from storage.remote import Remote, is_address

MAX_SHARD_ROWS = 4096
NUM_STREAMS = 8
"""Shards of a column that are fetched side by side."""
FIELD = "features"
SHARD_NAME = re.compile(r"(\d{8})-(\d{8})(?:\.([0-9a-f]{32}))?\.arrow")

log = logging.getLogger("storage")


class Shard(NamedTuple):
    path: Path
    start: int
    stop: int
    rows: np.ndarray


class FeatureStore:
    """Columns under one root, a folder or an address. Any number of processes may read and write.

    What lies at an address is fetched once a machine, by one of its processes, and read from a folder there.
    """

    def __init__(self, root: str | Path):
        self.remote = Remote(str(root)) if is_address(root) else None
        self.root = self.remote.cache if self.remote else Path(root)

    def names(self, column: str) -> list[str]:
        """The names of a column's shards, by one listing of where all machines read, sound or not."""
        names = self.remote.names(column) if self.remote else self._names_here(column)
        return sorted(name for name in names if SHARD_NAME.fullmatch(name))

    def missing(
        self, column: str, num_rows: int, first: int = 0, names: Collection[str] | None = None
    ) -> list[tuple[int, int]]:
        """The ranges of rows in [first, num_rows) that no sound shard holds; a damaged shard is deleted with a
        warning.

        names: the shards that the column is known to have, of which alone those of the rows are opened, and nothing is
        listed. Without them the column is listed, and this machine's shards that are gone at an address are put there
        again.
        """
        shards = self._sound_shards(column, num_rows, first, names)
        if self.remote:
            there = self.names(column) if names is None else names
            for shard in shards:
                if shard.path.name not in there:
                    self.remote.put(f"{column}/{shard.path.name}", shard.path)
            if gaps := _gaps(shards, num_rows, first):
                self._fetch(self.remote, column, there, gaps)
                shards = self._sound_shards(column, num_rows, first, names)
        return _gaps(shards, num_rows, first)

    def write(self, column: str, start: int, rows: np.ndarray) -> None:
        """Publish rows [start, start + len(rows)) of a column, float16 or uint8 [N, D]; readers see all of them or
        none."""
        if rows.dtype not in (np.float16, np.uint8) or rows.ndim != 2 or not rows.size:
            raise ValueError(f"column={column!r} takes float16 or uint8 [N, D], not {rows.dtype} {rows.shape}")
        folder = self.root / column
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(rows), MAX_SHARD_ROWS):
            shard = np.ascontiguousarray(rows[first : first + MAX_SHARD_ROWS])
            stop = start + first + len(shard)
            self._write_shard(folder / f"{start + first:08d}-{stop:08d}", shard)

    def read(self, column: str, num_rows: int, first: int = 0) -> list[np.ndarray]:
        """Rows [first, num_rows) as read-only [n, D] views of the memory-mapped shards, in order.

        Raises LookupError where rows are missing.
        """
        shards = self._sound_shards(column, num_rows, first)
        if self.remote and (gaps := _gaps(shards, num_rows, first)):
            self._fetch(self.remote, column, self.names(column), gaps)
            shards = self._sound_shards(column, num_rows, first)
        if gaps := _gaps(shards, num_rows, first):
            where = self.remote.address if self.remote else self.root
            raise LookupError(f"column={column!r} lacks row {gaps[0][0]} in {where}; {num_rows} were asked for")
        views, covered = [], first
        for shard in shards:
            views.append(shard.rows[covered - shard.start : num_rows - shard.start])
            covered = shard.stop
        return views

    @contextmanager
    def claimed(self, folder: str, start: int, stop: int) -> Iterator[None]:
        """One process at a time may write rows [start, stop) of the columns in a folder; what a killed one has left
        half-written is deleted."""
        path = self.root / folder / f".{start:08d}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, says=False):  # the command has said it
            for part in path.parent.glob(".[0-9]*.part"):
                if start <= int(part.name[1:9]) < stop:
                    part.unlink(missing_ok=True)
            yield

    def describe(self, folder: str, record: dict) -> None:
        """What a folder of columns holds, for people: _key.json, written once."""
        self._publish(f"{folder}/_key.json", lambda part: part.write_text(json.dumps(record, indent=1)))

    def describe_rows(self, folder: str, split: str, columns: dict[str, np.ndarray]) -> None:
        """What the rows of a split are (image number, label): _rows-<split>.parquet, written once.

        Apart from the features, because DuckDB refuses Arrow tables with a float16 column.
        """
        self._publish(f"{folder}/_rows-{split}.parquet", lambda part: pq.write_table(pa.table(columns), part))

    def export_parquet(self, column: str, num_rows: int, destination: Path, extra: dict[str, np.ndarray]) -> None:
        """The first num_rows rows as Parquet, with extra columns (row numbers, labels, ...) beside the features."""
        extra = {name: values[:num_rows] for name, values in extra.items()}
        write_parquet(np.concatenate(self.read(column, num_rows)), destination, extra)

    def _names_here(self, column: str) -> list[str]:
        with suppress(FileNotFoundError):
            return os.listdir(self.root / column)
        return []

    def _sound_shards(
        self, column: str, num_rows: int, first: int, names: Collection[str] | None = None
    ) -> list[Shard]:
        """Those of this machine, in order, each with rows in [first, num_rows) that none before it has. names: which
        to look for; all that it has if None."""
        shards, covered = [], first
        for name in sorted(self._names_here(column) if names is None else names):
            if not SHARD_NAME.fullmatch(name):
                continue
            path, (start, stop) = self.root / column / name, row_range(name)
            if start >= num_rows:
                break
            if stop > covered and (rows := self._sound(path)) is not None:
                shards.append(Shard(path, start, stop, rows))
                covered = stop
        return shards

    def _sound(self, path: Path) -> np.ndarray | None:
        """The rows of a shard, checked once a process; None after deleting a damaged one, of which one process
        warns."""
        try:
            return _open_checked(self.root, path, path.stat().st_mtime_ns)
        except FileNotFoundError:
            return None
        except ValueError as error:
            with suppress(FileNotFoundError):
                path.unlink()
                again = "fetched or made" if self.remote else "made"
                log.warning("damaged shard %s (%s); it is deleted and will be %s again", path, error, again)
            return None

    def _fetch(self, remote: Remote, column: str, names: Collection[str], gaps: list[tuple[int, int]]) -> None:
        """The shards of these names that have rows in the gaps."""
        ranges = {name: row_range(name) for name in names}
        wanted = [name for name, (start, stop) in ranges.items() if any(start < b and a < stop for a, b in gaps)]
        (self.root / column).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            list(pool.map(partial(self._fetch_one, remote, column), wanted))

    def _fetch_one(self, remote: Remote, column: str, name: str) -> None:
        """By one process of this machine."""
        path = self.root / column / name
        lock, part = path.with_name(f".{name}.lock"), path.with_name(f".{name}.fetched")
        with locked(lock, says=False):
            if not path.exists() and (data := self._sound_bytes(remote, path)) is not None:
                try:
                    part.write_bytes(data)
                    os.replace(part, path)
                finally:
                    part.unlink(missing_ok=True)
            lock.unlink()

    def _sound_bytes(self, remote: Remote, path: Path) -> pa.Buffer | None:
        """The bytes of a shard there; None where it is gone, or after deleting it with a warning, because it is damaged
        there and not only on its way."""
        name = path.relative_to(self.root).as_posix()
        with suppress(FileNotFoundError):
            for _ in range(2):
                data = remote.read(name)
                if _fits(self.root, path, data):
                    return data
            remote.delete(name)
            log.warning("damaged shard %s of %s; it is deleted and will be made again", name, remote.address)
        return None

    def _write_shard(self, place: Path, rows: np.ndarray) -> None:
        values = pa.Array.from_buffers(pa.from_numpy_dtype(rows.dtype), rows.size, [None, pa.py_buffer(rows)])
        batch = pa.record_batch([pa.FixedSizeListArray.from_arrays(values, rows.shape[1])], [FIELD])
        with scratch(place.parent.with_name(place.name)) as part:  # where claimed() finds it without listing columns
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            with pa.memory_map(str(part)) as written:
                checksum = _checksum(self.root, place, written.read_buffer())
            path = place.with_name(f"{place.name}.{checksum}.arrow")
            if self.remote:
                self.remote.put(path.relative_to(self.root).as_posix(), part)
            os.replace(part, path)

    def _publish(self, name: str, write: Callable[[Path], object]) -> None:
        """A file that is written once."""
        path = self.root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with published(path) as part:
                write(part)
                if self.remote:
                    self.remote.put(name, part)


def write_parquet(features: np.ndarray, destination: Path, extra: dict[str, np.ndarray]) -> None:
    """[N, D] as a column of float32 lists, which DuckDB reads too, behind the extra columns."""
    offsets = np.arange(len(features) + 1, dtype=np.int32) * features.shape[1]
    lists = pa.ListArray.from_arrays(offsets, pa.array(features.astype(np.float32).ravel()))
    table = pa.table(extra).append_column(FIELD, lists)
    with published(destination) as part:
        pq.write_table(table, part)


def _gaps(shards: list[Shard], num_rows: int, first: int) -> list[tuple[int, int]]:
    """The ranges of rows in [first, num_rows) that the shards lack."""
    stops = [first, *(shard.stop for shard in shards)]
    starts = [*(shard.start for shard in shards), num_rows]
    return [(stop, start) for stop, start in zip(stops, starts, strict=True) if stop < start]


def row_range(name: str) -> tuple[int, int]:
    """The rows [start, stop) of a shard, from its name."""
    start, stop = name.split(".")[0].split("-")
    return int(start), int(stop)


def _checksum(root: Path, place: Path, data: pa.Buffer) -> str:
    xxh3 = xxhash.xxh3_128(place.relative_to(root).as_posix().encode())
    xxh3.update(data)
    return xxh3.hexdigest()


def _fits(root: Path, path: Path, data: pa.Buffer) -> bool:
    """Whether the checksum in a shard's name is that of its bytes and place."""
    name, _, checksum = path.name.removesuffix(".arrow").partition(".")
    return _checksum(root, path.with_name(name), data) == checksum


@lru_cache(maxsize=4096)
def _open_checked(root: Path, path: Path, mtime_ns: int) -> np.ndarray:
    if path.name.count(".") == 1:
        raise ValueError("it has no checksum")
    data = pa.memory_map(str(path)).read_buffer()
    if not _fits(root, path, data):
        raise ValueError("its checksum does not match")
    column = pa.ipc.open_file(data).get_batch(0).column(0)
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)
