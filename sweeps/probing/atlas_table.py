"""An atlas as a table and a picture."""

from collections.abc import Sequence
from pathlib import Path

from ddae.report.transfer import winners
from ddae.units import rounded
from sweeps.cli import aligned
from sweeps.findings import atlas
from sweeps.findings.atlas import Entry
from sweeps.findings.folder import attempt

HEADER = (
    "network",
    "class",
    "dataset",
    "classes",
    "train",
    "block",
    "depth",
    "sigma",
    "pooling",
    "head",
    "val",
    "pixels",
)


def show(folder: Path, others: Sequence[Path], figure: Path) -> str:
    """Merge others into an atlas, draw it, and return it as a table. Raises ValueError for what is no folder, and for
    an atlas without an entry."""
    for each in (*others, *([] if others else [folder])):
        if not each.is_dir():
            raise ValueError(f"{each} is no folder; give an atlas, as layer_noise.py makes it in --out")
    num_new = atlas.merge(others, folder) if others else 0
    entries = atlas.read(folder)
    if not entries:
        raise ValueError(f"{folder} holds no entry of an atlas; layer_noise.py adds one when a sweep ends")
    trouble = attempt(figure, lambda path: winners(points(entries), path))
    lines = aligned([HEADER, *map(row, entries)])
    merged = f", {num_new:,} of them new" if others else ""
    lines += ["", f"entries  {len(entries):,} in {folder}{merged}", f"picture  {trouble or figure}"]
    return "\n".join(lines)


def row(entry: Entry) -> tuple[str, ...]:
    """An entry under HEADER. A dataset whose name is not public is told by its fingerprint."""
    answer = entry.answer
    return (
        entry.backbone,
        entry.family,
        entry.dataset or entry.dataset_fingerprint[:8],
        str(entry.num_classes),
        f"{entry.num_train:,}",
        answer.block,
        f"{answer.depth:.2f}",
        rounded(answer.sigma, 3),
        f"{answer.pooling}x{answer.pooling}",
        answer.head,
        f"{100 * answer.accuracy:.1f} +- {100 * answer.stderr:.1f}",
        "" if entry.raw_pixels is None else f"{100 * entry.raw_pixels:.1f}",
    )


def points(entries: Sequence[Entry]) -> dict[str, list[tuple[float, float]]]:
    """network -> (sigma, depth) of each of its answers."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        found.setdefault(entry.backbone, []).append((entry.answer.sigma, entry.answer.depth))
    return found
