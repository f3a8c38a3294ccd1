"""What measuring an entry has found, as numbers and as it is printed."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddae.units import rounded
from sweeps.reproducing.entry import Entry
from sweeps.reproducing.kinds import Measured


@dataclass(frozen=True)
class Findings:
    entry: Entry
    """As it was run: with what flags have changed in it."""
    measured: Measured
    feature: str
    differs: tuple[str, ...]
    """All that is done otherwise than in the paper."""
    folder: Path
    tracked: str
    """How a person sees its run in MLflow."""

    @property
    def difference(self) -> float | None:
        """Measured less published; None where no number is printed."""
        return None if self.entry.published is None else self.measured.value - self.entry.published

    @property
    def is_within(self) -> bool | None:
        return None if self.difference is None else abs(self.difference) <= self.entry.tolerance

    @property
    def results(self) -> dict[str, Any]:
        value, stderr, num_test, num_train = self.measured
        return {
            "entry": self.entry.name, "source": self.entry.source, "measure": self.entry.measure, "measured": value,
            "stderr": None if math.isnan(stderr) else stderr, "published": self.entry.published,
            "difference": self.difference, "tolerance": self.entry.tolerance, "within": self.is_within,
            "num_test": num_test, "num_train": num_train, "feature": self.feature,
            "recipe": asdict(self.entry.recipe), "differs": list(self.differs),
        }  # fmt: skip

    @property
    def metrics(self) -> dict[str, float]:
        """As MLflow has them."""
        named = {
            "measured": self.measured.value, "stderr": self.measured.stderr, "published": self.entry.published,
            "difference": self.difference, "tolerance": self.entry.tolerance,
        }  # fmt: skip
        return {name: value for name, value in named.items() if value is not None and not math.isnan(value)}

    @property
    def comparison(self) -> str:
        """Measured against published, in one line."""
        entry, (value, stderr, *_) = self.entry, self.measured
        shown = rounded(value, 3) if entry.measure == "FID" else f"{value:.1f} +- {stderr:.1f} %"
        text = f"{entry.name}: measured {shown}, published {entry.published_text} ({entry.source})"
        if self.difference is None:
            return f"{text}; there is nothing to compare with"
        way = f"{rounded(abs(self.difference), 3)} {'above' if self.difference > 0 else 'below'}"
        verdict = "within" if self.is_within else "NOT within"
        return f"{text}: {way if self.difference else 'equal'}, {verdict} the tolerance of {entry.tolerance:g}"

    @property
    def text(self) -> str:
        _, _, num_test, num_train = self.measured
        images = f"{num_train:,} training images" if num_train else "no training image"
        against = "samples against" if self.entry.measure == "FID" else "test images, after"
        lines = [
            self.comparison,
            f"feature  {self.feature}",
            f"recipe   {self.entry.recipe.text}",
            f"images   {num_test:,} {against} {images} of {self.entry.dataset}",
            *(f"differs: {each}" for each in self.differs),
            *([f"note     {self.entry.says}"] if self.entry.says else []),
            f"results  {self.folder / 'results.json'}",
            f"mlflow   {self.tracked}",
        ]
        return "\n".join(lines)
