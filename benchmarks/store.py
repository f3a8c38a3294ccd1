"""The feature store against np.memmap, np.save and memcpy on the same array, and a proof that reading copies nothing.

python benchmarks/store.py               # about 30 seconds

Shards have 512 rows, as in a sweep; np.memmap has one file, np.save one a shard. Every write makes new files: where
a file takes the place of another, ext4 flushes it first (auto_da_alloc), whoever writes.
"""

import itertools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import record
import tyro
import xxhash

from storage import feature_store
from storage.feature_store import FeatureStore

BASELINES = {
    "np.memmap, in order": ["memcpy"],
    "store, in order": ["memcpy", "np.memmap, in order"],
    "np.memmap, random batches": ["memory, random batches"],
    "store, random batches": ["memory, random batches", "np.memmap, random batches"],
    "np.memmap, opened anew": ["memcpy"],
    "store, opened anew and checked": ["memcpy", "np.memmap, opened anew"],
    "np.save, checksum, rename": ["np.save"],
    "store, write": ["np.save", "np.save, checksum, rename"],
}
"""What each case is divided by, turn by turn."""


@dataclass
class Store:
    num_rows: int = 5120
    width: int = 4096
    shard_rows: int = 512
    batch: int = 128
    repeats: int = 21


def copy(views: Sequence[np.ndarray], out: np.ndarray) -> None:
    start = 0
    for view in views:
        out[start : start + len(view)] = view
        start += len(view)


def gather(views: Sequence[np.ndarray], order: np.ndarray, batch: int, out: np.ndarray) -> None:
    """Random batches of rows that lie in several arrays; the rows of a batch in ascending order."""
    edges = np.cumsum([0, *map(len, views)])
    for start in range(0, len(order), batch):
        rows = np.sort(order[start : start + batch])
        cuts = np.searchsorted(rows, edges)
        rows -= np.repeat(edges[:-1], np.diff(cuts))
        bounds = itertools.pairwise(cuts.tolist())
        for view, (low, high) in zip(views, bounds, strict=True):
            view.take(rows[low:high], 0, out[start + low : start + high], "clip")


def mapped_from(folder: Path, view: np.ndarray) -> bool:
    """Whether an array's bytes lie in memory that the kernel maps from a file below the folder (Linux)."""
    first = view.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(address, 16) for address in line.split()[0].split("-"))
        if str(folder) in line and start <= first and first + view.nbytes <= stop:
            return True
    return False


def main(config: Store) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((config.num_rows, config.width), dtype=np.float32).astype(np.float16)
    shards = {start: rows[start : start + config.shard_rows] for start in range(0, len(rows), config.shard_rows)}
    order = rng.permutation(config.num_rows)
    out = np.empty_like(rows)
    with tempfile.TemporaryDirectory() as name:
        folder, new = Path(name), Path(name) / "new"
        store = FeatureStore(folder)
        number = itertools.count()

        def write(column: str) -> None:
            for start, shard in shards.items():
                store.write(column, start, shard)

        def save(checked: bool) -> None:
            for shard in shards.values():
                path = new / f"{next(number)}.npy"
                np.save(path, shard)
                if checked:
                    path.rename(path.with_suffix(f".{xxhash.xxh3_128_hexdigest(shard.data)}"))

        def tidy() -> None:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()

        def read(anew: bool) -> list[np.ndarray]:
            if anew:
                feature_store._open_checked.cache_clear()
            return store.read("column", len(rows))

        def memmap() -> list[np.ndarray]:
            return [np.load(folder / "plain.npy", mmap_mode="r")]

        tidy()
        write("column")
        np.save(folder / "plain.npy", rows)
        plain = memmap()
        before = pa.total_allocated_bytes()
        views = read(anew=True)
        allocated = pa.total_allocated_bytes() - before
        mapped = sum(mapped_from(folder / "column", view) for view in views)
        cases = {
            "memcpy": lambda: np.copyto(out, rows),
            "np.memmap, in order": lambda: copy(plain, out),
            "store, in order": lambda: copy(views, out),
            "memory, random batches": lambda: gather([rows], order, config.batch, out),
            "np.memmap, random batches": lambda: gather(plain, order, config.batch, out),
            "store, random batches": lambda: gather(views, order, config.batch, out),
            "np.memmap, opened anew": lambda: copy(memmap(), out),
            "store, opened anew and checked": lambda: copy(read(anew=True), out),
            "np.save": lambda: save(checked=False),
            "np.save, checksum, rename": lambda: save(checked=True),
            "store, write": lambda: write(f"new/{next(number)}"),
            "read() of open shards": lambda: read(anew=False),
            "tidy": tidy,
        }
        seconds = record.interleave(cases, config.repeats)

    del seconds["tidy"]
    milliseconds = 1000 * median(seconds.pop("read() of open shards"))
    results: dict[str, dict] = {}
    for case, times in seconds.items():
        rate = rows.nbytes / 1e6 / median(times)
        shares = {base: 1 / record.ratio(seconds, case, base) for base in BASELINES.get(case, [])}
        results[case] = {"megabytes_a_second": rate, "speed_of": shares}
        print(f"{case:<31} {rate:8,.0f} MB/s   {'   '.join(f'{s:.2f} of {base}' for base, s in shares.items())}")
    print(f"read() of {len(views)} open shards takes {milliseconds:.2f} ms before the first row")
    print(
        f"no copy: {mapped} of {len(views)} arrays lie in the memory map of their shard; Arrow allocated {allocated} B"
    )
    results["read"] = {"milliseconds": milliseconds, "num_shards": len(views)}
    results["no copy"] = {"num_arrays": len(views), "in_memory_map": mapped, "allocated_bytes": allocated}
    record.write("store", results)


if __name__ == "__main__":
    main(tyro.cli(Store, description=__doc__))
