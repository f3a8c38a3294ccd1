"""Heads on features that are larger than the memory a fit may have.

    python benchmarks/large_heads.py             # 1,000,000 x 1,024 features, 1,000 classes: hours on one core
    python benchmarks/large_heads.py --num-images 1000 10000 100000 1000000 --num-classes 100 --name heads_by_size

The features are made up: 64 channels at 4x4 in unit noise around a mean of each class that is the same all over the
map. So the best possible classifier is known, and its accuracy on the same val images is measured. They are written to
the store, as float16, and each head is fitted in a process of its own, on one thread, as a trial of a sweep would be.

Peak memory is what the process has of its own (RssAnon, PyTorch included; the pages of the store are the
system's). Reads: how often all features were read, and the bytes of these that came from the disk. Limits: what share
of the time a matrix product of the same number of operations would take, and a plain read of the same bytes. CPU
seconds, of the fit and of reading, decoding and pooling in it, say the same on a busy machine. --held fits again with
all features in memory, for accuracies to be compared. A head's results are kept when it is done.
"""

import json
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import tyro
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from ddae.heads import find_head
from ddae.pooling import pool
from ddae.probe import fit_probe, to_maps
from ddae.streaming import Features, Streamed
from ddae.units import parse_size
from storage.feature_store import MAX_SHARD_ROWS, FeatureStore

CHANNELS, SIDE = 64, 4
WIDTH = CHANNELS * SIDE**2
NUM_VAL = 10_000


@dataclass(frozen=True)
class LargeHeads:
    num_images: tuple[int, ...] = (1_000_000,)
    num_classes: int = 1000
    signal: float = 0.14
    """Length of the class means, a number; the noise has a deviation of 1."""
    pooling: int = SIDE
    """Grid of the maps that heads see; the rows that are read stay 4x4."""
    memory: str = "1GB"
    heads: tuple[str, ...] = ("ridge", "knn", "mlp", "linear", "cnn", "attention")
    held: bool = False
    """Fit also with all features in memory."""
    store: Path = Path("out/large_heads")
    name: str = "large_heads"
    """Of the files in results/."""


@dataclass
class Watch:
    """What a process holds of its own while the block runs, in bytes, at its most."""

    peak: int = 0

    def __enter__(self) -> "Watch":
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, 1024 * field_of("/proc/self/status", "RssAnon:"))


def field_of(path: str, name: str) -> int:
    return int(next(line.split()[1] for line in Path(path).read_text().splitlines() if line.startswith(name)))


def make(config: LargeHeads, num_images: int) -> float:
    """Write the features, unless they are there; returns the accuracy of the nearest mean, the best there can be."""
    store, rng = FeatureStore(config.store), np.random.default_rng(0)
    means = rng.standard_normal((config.num_classes, CHANNELS), dtype=np.float32) * config.signal
    right = 0
    for split, num in (("val", NUM_VAL), ("train", num_images)):
        for start in range(0, num, MAX_SHARD_ROWS):
            stop = min(start + MAX_SHARD_ROWS, num)
            rng = np.random.default_rng([split == "train", start])
            numbers = labels_of(split, start, stop, config.num_classes)
            if split == "train" and not store.missing(split, stop, start):
                continue
            maps = rng.standard_normal((stop - start, CHANNELS, SIDE**2), dtype=np.float32) + means[numbers, :, None]
            if store.missing(split, stop, start):
                store.write(split, start, maps.reshape(stop - start, -1).astype(np.float16))
            if split == "val":
                seen = maps.mean(2)
                nearest = (seen @ means.T - (means**2).sum(1) / 2).argmax(1)
                right += int((nearest == numbers).sum())
    return right / NUM_VAL


def labels_of(split: str, start: int, stop: int, num_classes: int) -> np.ndarray:
    """int64 [stop - start] of rows from a multiple of MAX_SHARD_ROWS on."""
    return np.random.default_rng([2 + (split == "train"), start]).integers(num_classes, size=stop - start)


def read(config: LargeHeads, num_images: int, split: str, memory_bytes: int | None) -> tuple[Features, torch.Tensor]:
    num = NUM_VAL if split == "val" else num_images
    starts = range(0, num, MAX_SHARD_ROWS)
    labels = [labels_of(split, start, min(start + MAX_SHARD_ROWS, num), config.num_classes) for start in starts]
    shards = FeatureStore(config.store).read(split, num)
    features = (
        pool(to_maps(shards, CHANNELS), config.pooling)
        if memory_bytes is None
        else Streamed(shards, CHANNELS, config.pooling, memory_bytes=memory_bytes)
    )
    return features, torch.from_numpy(np.concatenate(labels))


def fit(config: LargeHeads, num_images: int, name: str, memory_bytes: int | None) -> dict[str, float]:
    """One head, streamed or held."""
    torch.set_num_threads(1)
    train, val = (read(config, num_images, split, memory_bytes) for split in ("train", "val"))
    num_rows, reading, from_disk = 0, 0.0, field_of("/proc/self/io", "read_bytes:")
    rows_of, maps_of = Streamed._rows, Streamed._maps

    def counted(self: Streamed, spans: list[tuple[int, int]]) -> torch.Tensor:
        nonlocal num_rows, reading
        began = time.thread_time()
        rows = rows_of(self, spans)
        num_rows, reading = num_rows + len(rows), reading + time.thread_time() - began
        return rows

    def timed(self: Streamed, rows: torch.Tensor) -> torch.Tensor:
        nonlocal reading
        began = time.thread_time()
        maps = maps_of(self, rows)
        reading += time.thread_time() - began
        return maps

    Streamed._rows, Streamed._maps = counted, timed  # type: ignore[method-assign]
    started, before = time.perf_counter(), 1024 * field_of("/proc/self/status", "RssAnon:")
    cpu_started = time.process_time()
    with Watch() as watch:
        fitted = fit_probe(name, train, val, config.num_classes, seed=0)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "reading_cpu_seconds": reading,
        "accuracy": float(fitted.correct.mean()),
        "peak_bytes": watch.peak,
        "bytes_before": before,
        "reads": max(0, num_rows - NUM_VAL) / num_images,
        "bytes_from_disk": field_of("/proc/self/io", "read_bytes:") - from_disk,
    }


def num_operations(config: LargeHeads, num_images: int, name: str) -> float:
    """Operations of a fit, counted on few images: a fit's grow with their number, beyond the fewest steps."""
    counts, (head, sizes) = [], find_head(name)
    for num_rows in (2560, 5120):
        maps = torch.randn(num_rows, CHANNELS, config.pooling, config.pooling)
        labels = torch.arange(num_rows) % config.num_classes
        with FlopCounterMode(display=False) as counter:
            fitted = head.fit(maps, labels, config.num_classes, 0, *sizes)
            fitted(maps[:1])
        counts.append(counter.get_total_flops())
    return counts[0] + (counts[1] - counts[0]) / 2560 * (num_images - 2560)


def limits(config: LargeHeads, num_images: int) -> dict[str, float]:
    """Operations a second of a large matrix product, and bytes a second of a plain read of the store."""
    torch.set_num_threads(1)
    x = torch.randn(2048, 2048)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - started)
    shards = FeatureStore(config.store).read("train", min(num_images, 100_000))
    started = time.perf_counter()
    for shard in shards:
        shard.copy()
    seconds = time.perf_counter() - started
    return {"operations": 2 * 2048**3 / min(times), "bytes": sum(shard.nbytes for shard in shards) / seconds}


def main(config: LargeHeads) -> None:
    results: dict[str, Any] = {"fits": []}
    for num_images in sorted(config.num_images):
        best = make(config, num_images)
        limit = limits(config, num_images)
        results |= {"best_possible": best, "limits": limit}
        print(f"{num_images:,} x {WIDTH:,} features, {config.num_classes:,} classes; best: {best:.2%}", flush=True)
        for head, memory in product(config.heads, (parse_size(config.memory), *([None] if config.held else []))):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:  # its memory is its own
                found = process.submit(fit, config, num_images, head, memory).result()
            product_seconds = num_operations(config, num_images, head) / limit["operations"]
            read_seconds = found["reads"] * 2 * WIDTH * num_images / limit["bytes"]
            found |= {
                "share_of_product": product_seconds / found["seconds"],
                "share_of_read": read_seconds / found["seconds"],
            }
            print(head, json.dumps(found), flush=True)
            results["fits"].append({"head": head, "num_images": num_images, "held": memory is None, **found})
            record.write(config.name, results)
            draw(results["fits"], config)


def draw(fits: list[dict[str, Any]], config: LargeHeads) -> None:
    """Seconds and memory of a fit against the number of images."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for number, head in enumerate(config.heads):
        for held in (False, True):
            chosen = [one for one in fits if one["head"] == head and one["held"] == held]
            if chosen:
                x = [one["num_images"] for one in chosen]
                style = {"color": f"C{number}", "marker": "os"[held], "linestyle": ("-", ":")[held]}
                label = f"{head}{', held' * held}"
                seconds.plot(x, [one["seconds"] for one in chosen], label=label, **style)
                memory.plot(x, [one["peak_bytes"] / 1e9 for one in chosen], **style)
    features = sorted(config.num_images)
    memory.plot(features, [4 * WIDTH * each / 1e9 for each in features], "--", color="0.6", label="float32 features")
    seconds.set(xlabel="training images", ylabel="seconds of a fit", xscale="log", yscale="log")
    memory.set(xlabel="training images", ylabel="peak memory (GB)", xscale="log", yscale="log")
    seconds.legend(frameon=False, fontsize=7)
    memory.legend(frameon=False, fontsize=7)
    figure.savefig(record.RESULTS / f"{config.name}.png", dpi=150)


if __name__ == "__main__":
    main(tyro.cli(LargeHeads, description=__doc__))
