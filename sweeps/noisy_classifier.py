"""Train one classifier of noised images for all noise levels: a two-layer head on frozen features.

    python sweeps/noisy_classifier.py                                 # the block of the newest layer_noise.py sweep
    python sweeps/noisy_classifier.py --sweep out/layer-noise-1a2b3c4d --baseline wide-resnet
    python sweeps/noisy_classifier.py --backbone ./my-model --dataset ./my-images --blocks up.1.1 --dry-run

Images are noised at a grid of levels, evenly spaced in log sigma, and pass the network once at each; the head learns
all levels together (DDAE, equation 5). What is searched: block, pooling, width, an embedding of the noise level, how
often each level is seen, and whether features are standardised level by level. DDAE's own recipe is among what is
tried. Accuracy against sigma is shown for it, for the answer, for heads that are fitted at one level each, and, with
--baseline, for a network that is trained for noised images from scratch; also at levels that no training saw.

The folder that it leaves is read by ddae.noisy_classifier.NoisyClassifier.load, and by guide.py. Stop it at any time:
the same command goes on.

Environment: as layer_noise.py.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps import cli
from sweeps.flags import ModelAndData

if TYPE_CHECKING:
    from sweeps.noisy.findings import Findings
    from sweeps.noisy.sweep import Setup


@dataclass(frozen=True)
class NoiseConditional(ModelAndData):
    sweep: Path | None = None
    """Folder of a finished layer_noise.py sweep, whose model, data, best blocks and pooling are taken; without --blocks
    the newest one in --out."""
    num_blocks: int = 2
    """So many of the sweep's best blocks are tried."""
    poolings: tuple[int, ...] = ()
    """Average-pool each map to p x p numbers a channel; that of the sweep's answer if not given. 1, as DDAE has, is
    always tried."""
    widths: tuple[int, ...] = (1, 2)
    """Hidden units of the head, as multiples of the numbers that it reads; 2, DDAE's, is always tried."""
    num_levels: int = 32
    """Noise levels that are trained on, evenly spaced in log sigma; each costs a forward pass an image."""
    num_between: int = 8
    """Levels between these at which val is looked at as well."""
    num_images: int = 1000
    """Training images; all there are if they are fewer."""
    num_draws: int = 2
    """Noise draws of each training image at each level."""
    num_val: int = 1000
    """Val images that are looked at; all there are if they are fewer."""
    baseline: tuple[str, ...] = ()
    """Networks that are trained on noised images from scratch, under the same distribution of noise: wide-resnet, a
    small one, or wrn:28-10, with group normalisation and an embedding of the noise level in every block."""
    baseline_epochs: int = 100
    """How often a baseline sees each training image, every time with other noise; DDAE trains for 200."""
    num_trials: int = 12
    """Cells that are tried."""
    memory: str = ""
    """What one fit may take, as 4GB; features are read from the store block by block. By default the fit's part of half
    of the machine's memory."""
    gpus_per_fit: float = 0.25
    """Share of a GPU that fits a head, where networks run on GPUs; 0 fits heads on the CPUs."""
    seed: int = 0
    """Decides what is tried, and how heads begin."""
    sync: tuple[Path, ...] | None = None
    """Log finished sweeps to MLFLOW_TRACKING_URI, and stop: the folders that are named here, or all in --out."""


def sweep(config: NoiseConditional, setup: "Setup | None" = None, started_seconds: float = 0) -> "Findings":
    """Run the sweep that the flags describe, or go on with it, and return what it has found.

    setup: the loaded network and data, where the caller has them. started_seconds: when the caller began, since the
    epoch; the time that is reported counts from there, or from this call.
    """
    started = started_seconds or time.time()
    from sweeps.noisy import sweep as noisy

    with noisy.open_sweep(setup or noisy.set_up(config), started) as run:
        trials = run.search()
        return run.conclude(trials)


def main(config: NoiseConditional) -> None:
    if config.sync is not None:
        print(cli.sync(config.sync, config.out, "noisy-classifier"))
        return
    started = time.time()
    from sweeps.noisy import sweep as noisy

    setup = noisy.set_up(config)
    if config.dry_run:
        print(noisy.estimate(setup))
    else:
        print(noisy.finished(setup) or noisy.report(sweep(config, setup, started)))
        cli.check_complete(noisy.incomplete(setup.folder))


if __name__ == "__main__":
    cli.run(main, NoiseConditional, __doc__)
