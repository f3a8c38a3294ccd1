"""Rows of numbers as text, and as a CSV file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def formatted(row: Mapping[str, Any], floats: str) -> dict[str, str]:
    """The row with its floats in this format, such as .4f, and everything else as str() has it."""
    return {name: f"{value:{floats}}" if isinstance(value, float) else str(value) for name, value in row.items()}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], floats: str = ".4f") -> None:
    """One line a row, under a header of all their names; what a row has not is empty."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(formatted(row, floats) for row in rows)
