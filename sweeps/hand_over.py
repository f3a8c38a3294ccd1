"""Hand a sweep's answer over: a model to load, to serve, and its features.

    python sweeps/hand_over.py                                        # of the newest sweep under out/
    python sweeps/hand_over.py --sweep out/layer-noise-1a2b3c4d --features parquet

Takes the answer's head as it was fitted on all training images, or fits it again, and writes model/ into the sweep's
folder, for `ddae.load`, and the same as an MLflow model on the sweep's run, for `mlflow models serve`. The test set is
not looked at. Repeated, it writes the same model, and logs it once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sweeps import cli


@dataclass(frozen=True)
class HandOver:
    sweep: Path | None = None
    """Folder of a finished sweep."""
    out: Path = Path("out")
    """Where the newest finished sweep is taken from if --sweep is not given."""
    include_backbone: bool = False
    """Copy the network's files into the model, which then works on any machine; else it says where they are."""
    features: Literal["none", "parquet", "hf"] = "none"
    """Write the answer's features too: parquet files, or a dataset for datasets.load_from_disk. Those of the test
    images are among them once final_test.py has run."""
    register: str = ""
    """Make the model a version of this name in MLflow's registry."""


def main(config: HandOver) -> None:
    from sweeps import handing_over

    folder = handing_over.named(config.sweep) if config.sweep else handing_over.newest(config.out)
    text, not_logged = handing_over.hand_over(folder, config.include_backbone, config.features, config.register)
    print(text)
    if not_logged:
        raise cli.Incomplete(not_logged)


if __name__ == "__main__":
    cli.run(main, HandOver, __doc__)
