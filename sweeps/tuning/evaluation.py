"""A candidate's result: from the ledger, or read, fitted and recorded."""

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import torch

from ddae.pooling import pool
from ddae.probe import Candidate, ProbeResult, fit_probe, to_maps
from ddae.screening import leave_one_out
from storage.feature_store import FeatureStore
from storage.results import Ledger
from sweeps.tuning.plan import Plan
from sweeps.tuning.space import Need, Space

LOOK_FEATURES = 1024
"""Numbers an image up to which a look is cheap beside the forward pass."""

Features = tuple[torch.Tensor, torch.Tensor]
"""(float32 [N, C, p, p], labels int64 [N])"""


def evaluate(
    plan: Plan, candidate: Candidate, num_images: int, read: Callable[[str, int], Features] | None = None
) -> ProbeResult:
    """The candidate's result on num_images training images: from the ledger, else fitted and recorded there.

    read: (split, num_images) -> features; from the store where it is not given.
    """
    ledger = Ledger(f"{plan.store}/results")
    key = plan.result_key(candidate, num_images)
    record = ledger.get(key)
    if record is not None:
        return from_record(record)
    read = read or (lambda split, num: read_features(plan, candidate, split, num))
    train, val = read("train", num_images), read("val", plan.num_val)
    _, result = fit_probe(candidate, train, val, plan.num_classes, plan.seed)
    result = replace(result, num_images=num_images)  # whatever the number of views
    ledger.put(key, to_record(result))
    return result


def look(plan: Plan, need: Need) -> np.ndarray:
    """bool [num_images]: which images of a need of one block leave-one-out ridge gets right, at the block's best
    pooling: from the ledger, else computed and recorded there."""
    [name] = need.blocks
    ledger = Ledger(f"{plan.store}/results")
    poolings = look_poolings(plan.space, name)
    key = plan.look_key(need, poolings)
    record = ledger.get(key)
    if record is None:
        record = pack(look_at(plan, need, poolings, np.arange(need.num_images)))
        ledger.put(key, record)
    return unpack(record)


def look_at(plan: Plan, need: Need, poolings: list[int], rows: np.ndarray) -> np.ndarray:
    """As look, on these rows of the split."""
    block = plan.space.block(need.blocks[0])
    shards = FeatureStore(plan.store).read(plan.column(need.timestep, need.split, block.name), int(rows.max()) + 1)
    maps, labels = to_maps(shards, block.channels)[rows], torch.from_numpy(plan.labels[need.split][rows])
    right = [leave_one_out(pool(maps, pooling), labels, plan.num_classes) for pooling in poolings]
    return max(right, key=np.mean)


def look_poolings(space: Space, block: str) -> list[int]:
    """Of the poolings that the block is searched at, the smallest, and those that leave few numbers an image."""
    channels = space.block(block).channels
    poolings = sorted({cell.pooling for cell in space.candidates_at({0: (block,)})} or {min(space.poolings)})
    return [p for p in poolings if p == poolings[0] or channels * p**2 <= LOOK_FEATURES]


def read_features(plan: Plan, candidate: Candidate, split: str, num_images: int) -> Features:
    """The candidate's block alone, pooled; of training images every view, one after the other."""
    store, draws = FeatureStore(plan.store), plan.draws if split == "train" else (0,)
    columns = [plan.column(candidate.timestep, split, candidate.block, draw) for draw in draws]
    shards = [shard for column in columns for shard in store.read(column, num_images)]
    maps = to_maps(shards, plan.space.block(candidate.block).channels)
    labels = torch.from_numpy(plan.labels[split][:num_images])
    return pool(maps, candidate.pooling), labels.repeat(len(draws))


def to_record(result: ProbeResult) -> dict:
    """A JSON object."""
    return {**asdict(result), "correct": pack(result.correct)}


def from_record(record: dict) -> ProbeResult:
    candidate, correct = Candidate(**record["candidate"]), unpack(record["correct"])
    return ProbeResult(**{**record, "candidate": candidate, "correct": correct})


def pack(bits: np.ndarray) -> dict:
    """bool [N] as a JSON object."""
    return {"bits": np.packbits(bits).tobytes().hex(), "length": len(bits)}


def unpack(record: dict) -> np.ndarray:
    packed = np.frombuffer(bytes.fromhex(record["bits"]), dtype=np.uint8)
    return np.unpackbits(packed, count=record["length"]).astype(bool)
