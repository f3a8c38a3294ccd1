"""Reading a column of the feature store against np.memmap on the same bytes, and against copying memory.

python benchmarks/store.py               # about 20 seconds

A process checks a shard's checksum when it first opens it; both figures are given.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import record
import tyro

from storage import feature_store
from storage.feature_store import FeatureStore


@dataclass
class Store:
    num_rows: int = 5000
    width: int = 4096
    batch: int = 128
    repeats: int = 15


def main(config: Store) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((config.num_rows, config.width), dtype=np.float32).astype(np.float16)
    order = rng.permutation(config.num_rows)
    out = np.empty_like(rows)
    megabytes = rows.nbytes / 1e6

    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(folder)
        store.write("column", 0, rows)
        plain = Path(folder) / "plain.npy"
        np.save(plain, rows)

        def sequential(views: list[np.ndarray]) -> None:
            start = 0
            for view in views:
                out[start : start + len(view)] = view
                start += len(view)

        def batches(views: list[np.ndarray]) -> None:
            """Random batches, each gathered shard by shard."""
            edges = np.cumsum([0, *map(len, views)])
            for start in range(0, config.num_rows, config.batch):
                wanted = order[start : start + config.batch]
                shard = np.searchsorted(edges, wanted, side="right") - 1
                for number, view in enumerate(views):
                    here = np.flatnonzero(shard == number)
                    out[start + here] = view[wanted[here] - edges[number]]

        def read() -> list[np.ndarray]:
            return store.read("column", config.num_rows)

        def first_read() -> list[np.ndarray]:
            feature_store._open_checked.cache_clear()
            return read()

        def memmap() -> list[np.ndarray]:
            return [np.load(plain, mmap_mode="r")]

        cases = {
            "memcpy": lambda: np.copyto(out, rows),
            "np.memmap, in order": lambda: sequential(memmap()),
            "store, in order": lambda: sequential(read()),
            "store, in order, with the checksum": lambda: sequential(first_read()),
            "np.memmap, random batches": lambda: batches(memmap()),
            "store, random batches": lambda: batches(read()),
            "np.save": lambda: np.save(plain.with_name("again.npy"), rows),
            "store, write": lambda: store.write("again", 0, rows),
        }
        seconds = record.interleave(cases, config.repeats)
    results = {name: {"megabytes_a_second": megabytes / median(times)} for name, times in seconds.items()}
    for case, baseline in (
        ("store, in order", "np.memmap, in order"),
        ("store, in order, with the checksum", "np.memmap, in order"),
        ("store, random batches", "np.memmap, random batches"),
        ("store, write", "np.save"),
    ):
        results[case]["speed_of_numpy"] = 1 / record.ratio(seconds, case, baseline)
    for name, row in results.items():
        share = f"   {row['speed_of_numpy']:.2f} of NumPy's" if "speed_of_numpy" in row else ""
        print(f"{name:<36} {row['megabytes_a_second']:9,.0f} MB/s{share}")
    record.write("store", results)


if __name__ == "__main__":
    main(tyro.cli(Store, description=__doc__))
