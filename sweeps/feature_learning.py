"""Does a denoiser learn signal and noise alike where a classifier learns one of both? (Han et al., ICLR 2025)

    python sweeps/feature_learning.py                                          # minutes on two cores
    python sweeps/feature_learning.py --num-samples 30 --signal-norms 5 15 --seeds 1 --no-images
    python sweeps/feature_learning.py --dry-run                                # what it will cost

A two-layer network of quadratic units is trained on samples of two patches, the signal of a class and noise of the
sample's own: as a denoiser, whose loss is in closed form, as a classifier, as a classifier of noised samples, and as an
autoencoder. How far its filters point at signal and noise is followed along training. The number of samples and the
norm of the signal are varied apart, because theory says that n SNR^2 decides. The same is then asked with images of two
classes in the place of the signals, by read-outs that need no known signal. No features, no store but for the ledger.
Stop it at any time: the same command goes on.

Environment: as layer_noise.py.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sweeps import cli
from sweeps.flags import ImagesAndLabels

if TYPE_CHECKING:
    from sweeps.dynamics.findings import Findings
    from sweeps.dynamics.sweep import Setup

Objective = Literal["diffusion", "classifier", "noised-classifier", "autoencoder"]


@dataclass(frozen=True)
class FeatureLearning(ImagesAndLabels):
    objectives: tuple[Objective, ...] = ("diffusion", "classifier", "noised-classifier", "autoencoder")
    """What the network is trained for."""
    num_samples: tuple[int, ...] = (10, 30, 90)
    """n, half of each class."""
    signal_norms: tuple[float, ...] = (5, 6.580370, 8.660254, 11.397535, 15)
    """|mu|; SNR = |mu| / (noise_std sqrt(dimension)). By default n SNR^2 is 0.25 to 20, and some of it comes about by
    several n."""
    dimension: int = 1000
    """d, of a patch."""
    noise_std: float = 1
    """sigma_xi, of the noise patches."""
    num_filters: int = 20
    """m, units of the network, or of each class of a classifier."""
    init_std: float = 1e-3
    """sigma_0, of the first weights."""
    alpha: float = 0.818731
    """The factor of a sample under noise, exp(-0.2); the noise has the deviation sqrt(1 - alpha^2)."""
    diffusion_rate: float = 0.1
    """Learning rate of the denoiser. All rates are in units of 1 / the largest eigenvalue of the mean over samples of
    sum_p x^p x^p', so that one rate suits all cells."""
    classifier_rate: float = 1
    """Learning rate of both classifiers."""
    autoencoder_rate: float = 0.02
    """Learning rate of the autoencoder."""
    steps: int = 20_000
    """Steps of gradient descent at most; most trainings end before, where nothing moves any more."""
    seeds: int = 3
    """How often each cell is trained, with other noise and weights."""
    seed: int = 0
    """The first seed."""
    images: bool = True
    """Train on images of two classes as well."""
    dataset: str = "fashion-mnist-8k"
    """Where the images come from: a name or a folder, as in layer_noise.py."""
    classes: tuple[str, ...] = ("trouser", "sneaker")
    """Two of its classes."""
    num_images: int = 100
    """n of the images, half of each class."""
    image_snrs: tuple[float, ...] = (0.5, 1, 2, 4, 8)
    """n SNR^2 of the images, which are multiplied so that it is; |mu| is the mean norm of the class means."""
    store: str = "out/store"
    """Folder or address of the results that are finished, from which the same command goes on."""
    out: Path = Path("out")
    """Folder in which the sweep's own folder is made."""
    dry_run: bool = False
    """Say what it would cost, and stop."""
    sync: tuple[Path, ...] | None = None
    """Log finished sweeps to MLFLOW_TRACKING_URI, and stop: the folders that are named here, or all in --out."""


def sweep(config: FeatureLearning, setup: "Setup | None" = None, started_seconds: float = 0) -> "Findings":
    """Run the sweep that the flags describe, or go on with it, and return what it has found.

    setup: what set_up returns, where the caller has it. started_seconds: when the caller began, since the epoch; the
    time that is reported counts from there, or from this call.
    """
    started = started_seconds or time.time()
    from sweeps.dynamics import sweep as dynamics

    return dynamics.run(setup or dynamics.set_up(config), started)


def main(config: FeatureLearning) -> None:
    if config.sync is not None:
        print(cli.sync(config.sync, config.out, "feature-learning"))
        return
    started = time.time()
    from sweeps.dynamics import sweep as dynamics

    setup = dynamics.set_up(config)
    if config.dry_run:
        print(dynamics.estimate(setup))
    else:
        print(dynamics.finished_report(setup.folder) or dynamics.report(sweep(config, setup, started)))
        cli.check_complete(dynamics.incomplete(setup.folder))


if __name__ == "__main__":
    cli.run(main, FeatureLearning, __doc__)
