"""A candidate's result: from the ledger, or read, fitted and recorded."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch

from ddae.pooling import pool
from ddae.probe import Candidate, ProbeResult, fit_probe, to_maps
from storage.feature_store import FeatureStore
from storage.results import Ledger
from sweeps.tuning.plan import Plan

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
    ledger.put(key, to_record(result))
    return result


def read_features(plan: Plan, candidate: Candidate, split: str, num_images: int) -> Features:
    """The candidate's block alone, pooled."""
    views = FeatureStore(plan.store).read(plan.column(candidate.timestep, split, candidate.block), num_images)
    maps = to_maps(views, plan.space.block(candidate.block).channels)
    return pool(maps, candidate.pooling), torch.from_numpy(plan.labels[split][:num_images])


def to_record(result: ProbeResult) -> dict:
    """A JSON object; `correct` becomes packed bits in hexadecimal."""
    return {**asdict(result), "correct": np.packbits(result.correct).tobytes().hex(), "num_val": len(result.correct)}


def from_record(record: dict) -> ProbeResult:
    fields = dict(record)
    bits = np.frombuffer(bytes.fromhex(fields.pop("correct")), dtype=np.uint8)
    correct = np.unpackbits(bits, count=fields.pop("num_val")).astype(bool)
    return ProbeResult(**{**fields, "candidate": Candidate(**fields["candidate"]), "correct": correct})
