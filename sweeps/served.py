"""What an MLflow server runs of a winner: rows with an image's bytes in, rows with its class out."""

from pathlib import Path
from typing import TYPE_CHECKING

import ddae
from storage.tracking import refusal

if TYPE_CHECKING:
    from pandas import DataFrame

    from ddae.winner import Winner

INPUTS = {"image": "binary"}
"""The bytes of a PNG, JPEG or any other file that Pillow reads; base64 in JSON."""
OUTPUTS = {"label": "long", "class": "string", "probability": "double"}
PACKAGES = (
    "torch", "diffusers", "transformers", "filelock", "fsspec", "huggingface-hub", "mlflow", "numpy", "pandas",
    "pillow", "pyarrow", "pyyaml", "safetensors", "scikit-learn", "xxhash",
)  # fmt: skip
"""All that it imports, beside the packages of this project."""


class Served:
    def __init__(self, winner: "Winner"):
        self.winner = winner

    def predict(self, rows: "DataFrame", params: dict | None = None) -> "DataFrame":
        from pandas import DataFrame

        files = list(rows["image"])
        if not all(isinstance(file, bytes) for file in files):  # a name would be read from the server's disk
            raise refusal("image must be the bytes of an image file, in base64 where the request is JSON")
        try:
            probabilities = self.winner.predict_proba(files)
        except ValueError as error:
            raise refusal(str(error)) from error
        best = probabilities.argmax(1)
        values = best, [self.winner.class_names_[label] for label in best], probabilities.max(1).astype(float)
        return DataFrame(dict(zip(OUTPUTS, values, strict=True)))


def _load_pyfunc(folder: str) -> Served:
    """By its name MLflow finds it."""
    return Served(ddae.load(Path(folder)))
