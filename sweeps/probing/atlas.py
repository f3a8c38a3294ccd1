"""What a probing sweep adds to an atlas, and where it begins because of one."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ddae.backbones import LIBRARIES
from ddae.datasets import DATASETS
from ddae.probe import standard_error
from ddae.transfer import mean_standing, nearest_of
from storage.files import published
from sweeps.findings import atlas
from sweeps.findings.answer import Answer
from sweeps.findings.atlas import Answered, Entry, Site
from sweeps.probing.screening import Screening
from sweeps.probing.source import FeatureSource
from sweeps.probing.space import Cell
from sweeps.probing.task import ProbeTask
from sweeps.search.task import Result

KEPT = "warm_start.json"
SAYS = "numbers for other sweeps, without path, user or image; nothing is sent anywhere"

log = logging.getLogger("sweeps")


@dataclass(frozen=True)
class WarmStart:
    """Where a sweep begins, as others have ended; no ranking where none of them was of this network or its family."""

    ranking: np.ndarray | None
    """How well each site stood elsewhere, [blocks, timesteps]."""
    cells: tuple[Cell, ...] = ()
    """What won elsewhere, to be tried first."""
    said: str = ""
    """For the report."""


def entry_of(sweep: str, task: ProbeTask, screening: Screening, answer: Answer, raw_pixels: Result | None) -> Entry:
    """What is made public of a sweep. sweep: the name of its folder."""
    source, space, cell, result = task.source, task.space, answer.cell, answer.result
    sites: dict[tuple[str, int], Site] = {}
    for found in reversed(screening.rounds):
        its = []
        for timestep, blocks in found.items():
            for name, right in blocks.items():
                accuracy = round(float(right.mean()), 6)
                stderr = round(standard_error(min(1.0, accuracy), len(right)), 6)
                where = name, round(space.block(name).flops_share, 6), timestep, round(space.sigmas[timestep], 6)
                its.append(Site(*where, accuracy, stderr, len(right)))
        for site in sorted(its, key=lambda site: -site.accuracy):
            sites.setdefault((site.block, site.timestep), site)
    error = task.metric.replace("accuracy", "stderr")
    return Entry(
        backbone=short_name(source.backbone),
        backbone_sha256=source.key.backbone,
        family=source.family,
        dataset=source.dataset if source.dataset in DATASETS else "",
        dataset_fingerprint=source.images or source.key.images,
        num_train=task.num_train,
        num_val=task.num_val,
        num_classes=task.num_classes,
        metric=task.metric,
        sites=tuple(sites.values()),
        answer=Answered(
            cell.block,
            round(space.block(cell.block).flops_share, 6),
            cell.timestep,
            round(space.sigmas[cell.timestep], 6),
            cell.pooling,
            cell.head,
            round(result.metrics[f"val_{task.metric}"], 6),
            round(result.metrics[f"val_{error}"], 6),
        ),
        raw_pixels=round(raw_pixels.metrics[f"val_{task.metric}"], 6) if raw_pixels else None,
        sweep=sweep.rpartition("-")[2],
        version=version("ddae-sweeps"),
    )


def short_name(name: str) -> str:
    """A network's name without its folder."""
    library, colon, inside = name.partition(":")
    return f"{library}:{short_name(inside)}" if colon and library in LIBRARIES else name.rstrip("/").rpartition("/")[2]


def advise(task: ProbeTask, entries: Sequence[Entry]) -> WarmStart:
    """Where to begin, from sweeps on other datasets: those of the same network or, where there are none, of networks of
    the same class, whose sites are matched by noise and by their share of a forward pass. Where random weights are best
    says nothing of trained ones."""
    source, space = task.source, task.space
    others = [entry for entry in entries if not is_of(entry, source)]
    same = [entry for entry in others if entry.backbone_sha256 == source.key.backbone]
    trained = [entry for entry in others if not entry.backbone.startswith("random:")]
    found = one_a_dataset(same or [entry for entry in trained if entry.family == source.family])
    if not found:
        return WarmStart(None, said="as usual: the atlas has no sweep of this network or its class on another dataset")
    depths, sigmas = [block.flops_share for block in space.blocks], list(space.sigmas.values())
    rankings = [[(site.depth, site.sigma) for site in entry.sites] for entry in found]
    where = [(block.flops_share, sigma) for block in space.blocks for sigma in sigmas]
    cells = []
    for answer in (entry.answer for entry in found):
        block, column = divmod(nearest_of(answer.depth, answer.sigma, where), len(sigmas))
        cells.append(Cell(space.block_names[block], space.timesteps[column], answer.pooling, answer.head))
    whose = "of this network" if same else f"of other networks of its class ({source.family})"
    said = f"at the sites that won in {len(found)} other sweep{'s' * (len(found) > 1)} {whose}"
    known = set(space.cells)
    return WarmStart(
        mean_standing(depths, sigmas, rankings), tuple(cell for cell in dict.fromkeys(cells) if cell in known), said
    )


def is_of(entry: Entry, source: FeatureSource) -> bool:
    """Whether a sweep was on this dataset; a fingerprint alone is another one at another image size."""
    has_its_name = entry.dataset == source.dataset and source.dataset in DATASETS
    return has_its_name or entry.dataset_fingerprint == (source.images or source.key.images)


def one_a_dataset(entries: Sequence[Entry]) -> list[Entry]:
    """Keep one of several sweeps of a network on a dataset, which screened on most images; of equals the last."""
    found: dict[tuple[str, str], Entry] = {}
    for entry in sorted(entries, key=lambda entry: (max(site.num_images for site in entry.sites), entry.name)):
        found[entry.backbone_sha256, entry.dataset_fingerprint] = entry
    return list(found.values())


def warm_start(folder: Path, atlas_folder: Path | None, task: ProbeTask, keep: bool = False) -> WarmStart:
    """Where a sweep begins: as its folder says, so that it goes on however the atlas has grown since, else as the atlas
    advises now. keep: whether that is written into the folder."""
    if atlas_folder is None:
        return WarmStart(None)
    if (folder / KEPT).exists():
        return read_kept(folder / KEPT)
    found = advise(task, atlas.read(atlas_folder))
    if keep:
        if found.ranking is None:
            log.warning(f"--warm-start {atlas_folder}: {found.said}")
        with published(folder / KEPT) as part:
            part.write_text(json.dumps(as_json(found)))
    return found


def as_json(found: WarmStart) -> dict[str, Any]:
    ranking = None if found.ranking is None else found.ranking.tolist()
    return {"ranking": ranking, "cells": [asdict(cell) for cell in found.cells], "said": found.said}


def read_kept(path: Path) -> WarmStart:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        ranking = None if kept["ranking"] is None else np.array(kept["ranking"], dtype=float)
        return WarmStart(ranking, tuple(Cell(**cell) for cell in kept["cells"]), kept["said"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}, where the sweep began, is damaged; delete it, and the sweep begins anew") from error


def add(folder: Path, entry: Entry) -> tuple[str, str]:
    """Add an entry to an atlas. Returns what is said of it, and why that failed, if it did: the answer does not depend
    on it."""
    try:
        path = atlas.write(folder, entry)
    except OSError as error:
        return "", f"{folder} could not be added to ({error.strerror})"
    return f"{path}: {SAYS}", ""
