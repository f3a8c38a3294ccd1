"""Find out what the noise of pre-training does: train networks under several, and look at each along its training.

    python sweeps/noise_ablation.py                                      # six noise schedules, five snapshots of each
    python sweeps/noise_ablation.py --configurations full edm-ddpm++ ddpm-ddpm++    # DDPM against EDM, one network
    python sweeps/noise_ablation.py --dry-run                            # what it trains, and how long that takes

A configuration is a training of pretrain.py, all else alike. Each network is looked at after several numbers of steps:
all its blocks are searched at noise levels that are the same for every schedule on the axis of sigma (the same t is
another noise in another schedule), and its samples are compared with real images. A short schedule cannot be sampled
from noise alone, because its last timestep still holds much of the image, so samples are also measured that begin at
noised real images (Xiang et al. 2023, section 4.1.1 and Figure 4).

Networks are kept in --out/networks, and results in the store. Stop it at any time: the same command goes on, and one
with more configurations, or other flags of what is done with the networks, trains nothing twice.

Environment: as layer_noise.py.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sweeps import cli
from sweeps.flags import ImagesAndLabels

if TYPE_CHECKING:
    from sweeps.ablation.findings import Findings
    from sweeps.ablation.sweep import Setup


@dataclass(frozen=True)
class NoiseAblation(ImagesAndLabels):
    configurations: tuple[str, ...] = ("full", "T512", "T256", "T64", "smaller-half", "larger-half")
    """Trainings by name. DDPM with 1,000, 512, 256 or 64 timesteps, or with half of the range of betas: full, T512,
    T256, T64, smaller-half, larger-half. With other networks and kinds of diffusion: ddpm-ddpm++, edm-unet, edm-ddpm++,
    flow. Or any flags of pretrain.py, each configuration in quotes: '--num-levels 128 --flip'."""
    training: str = ""
    """More flags of pretrain.py, for all trainings: '--latents out/vae-fashion-mnist/model --attention 4'."""
    dataset: str = "fashion-mnist-8k"
    """Name or image folder. Networks are trained on its official train split, without labels."""
    steps: int = 4000
    """Steps of each training. The learning rate does not fall, so that a snapshot is as good as a training that ends
    there."""
    num_snapshots: int = 5
    """How often a network is looked at, evenly along its training."""
    batch_size: int = 64
    learning_rate: float = 1e-3
    channels: tuple[int, ...] = (16, 32, 64)
    """Width of each resolution of every network, highest first."""
    sigmas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6)
    """Noise against image, at which features are searched, each at the nearest timestep where there is one."""
    num_images: int = 1000
    """Training images whose features are classified; all there are if they are fewer."""
    num_val: int = 1000
    """Val images, likewise."""
    pooling: int = 2
    """Average-pool each map to p x p numbers a channel."""
    num_seeds: int = 3
    """How often that is done, each time with other training images and other noise."""
    num_samples: int = 3000
    """Images that are sampled from each snapshot, twice; there must be twice as many real ones."""
    sampling_steps: int = 50
    """Passes of the network for a sample (twice as many under EDM)."""
    extractor: str = ""
    """Network under which samples are compared, as sample.py takes it; by default the judge, for Fashion-MNIST where it
    is at hand."""
    search: Literal["grid", "optuna", "random"] = "grid"
    """grid looks at every configuration after every snapshot; optuna and random try --num-trials of these, and optuna
    looks for more accuracy and a smaller FD at once."""
    num_trials: int = 12
    """Cells that optuna or random try."""
    seed: int = 0
    """Decides first weights, images and noise of every training, and the search."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    store: str = "out/store"
    """Folder of results, shared by sweeps."""
    out: Path = Path("out")
    """Folder in which the sweep's own folder and the networks are made."""
    dry_run: bool = False
    """Say what it would cost, and stop."""
    sync: tuple[Path, ...] | None = None
    """Log finished sweeps to MLFLOW_TRACKING_URI, and stop: the folders that are named here, or all in --out."""


def sweep(config: NoiseAblation, setup: "Setup | None" = None, started_seconds: float = 0) -> "Findings":
    """Run the sweep that the flags describe, or go on with it, and return what it has found.

    setup: what was checked and loaded, where the caller has it. started_seconds: when the caller began, since the
    epoch; the time that is reported counts from there, or from this call.
    """
    started = started_seconds or time.time()
    from sweeps.ablation.sweep import run, set_up

    return run(setup or set_up(config), started)


def main(config: NoiseAblation) -> None:
    if config.sync is not None:
        print(cli.sync(config.sync, config.out, "noise-ablation"))
        return
    started = time.time()
    from sweeps.ablation import sweep as ablation

    setup = ablation.set_up(config)
    if config.dry_run:
        print(ablation.estimate(setup))
    else:
        print(ablation.finished_report(setup.folder) or ablation.report(sweep(config, setup, started)))
        cli.check_complete(ablation.incomplete(setup.folder))


if __name__ == "__main__":
    cli.run(main, NoiseAblation, __doc__)
