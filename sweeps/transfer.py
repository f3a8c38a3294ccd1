"""Find out how far the best feature of one dataset is the best of another: layer_noise.py for every pair of a network
and a dataset.

    python sweeps/transfer.py                                             # the model that ships, on two datasets
    python sweeps/transfer.py --backbones google/ddpm-cifar10-32 ./edm random:./edm --datasets cifar10 ./pets cub
    python sweeps/transfer.py --backbones A B C --datasets X Y Z --dry-run          # what each pair costs

Every pair is searched as layer_noise.py does it, all of them side by side. Every answer is then fitted on the other
datasets, too: what it loses there against their own answers is the regret, on the same val images. All sites (block x
timestep) are screened by ridge regression on as many training images, so that the orders of two datasets, and of two
networks at the same noise, can be compared. A network takes its own timesteps; --sigmas gives all of them the same
noise levels, for one axis.

Stop it at any time: the same command goes on. Pairs that were searched before, here or by layer_noise.py, cost nothing
where they are in the same store.

Environment: as layer_noise.py.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sweeps import cli
from sweeps.flags import ImagesAndLabels

if TYPE_CHECKING:
    from sweeps.transferring.findings import Findings
    from sweeps.transferring.setup import Setup


@dataclass(frozen=True)
class Transfer(ImagesAndLabels):
    backbones: tuple[str, ...] = ("ddpm-fashion-mnist", "random:ddpm-fashion-mnist")
    """Networks, each as --backbone of layer_noise.py takes it; random:NAME is NAME with random weights."""
    datasets: tuple[str, ...] = ("fashion-mnist-8k", "digits")
    """Datasets, each as --dataset of layer_noise.py takes it."""
    sigmas: tuple[float, ...] = ()
    """Noise against image: every network is looked into at the timesteps that are nearest to these, as far as it has
    them. By default at its own, up to nine."""
    site_images: int = 0
    """Training images on which every site is screened, of each dataset; all there are if they are fewer. 0 is 500, or 7
    a class."""
    poolings: tuple[int, ...] = (1, 2, 4)
    """Average-pool each map to p x p numbers a channel."""
    heads: tuple[str, ...] = ("linear", "mlp")
    """Heads, as layer_noise.py takes them."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    """optuna and random stop the worse cells early (ASHA); grid fits every cell on all images."""
    search_images: int | Literal["auto", "all"] = "auto"
    """Training images that a pair's search has at most, as in layer_noise.py."""
    num_trials: int = 40
    """Cells that optuna or random try for a pair."""
    keep: float = 0.5
    """Share of the timesteps that stay after each round of screening."""
    finalists: int = 2
    """So many timesteps stay to the end, but for those where every block is clearly worse."""
    metric: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    """What chooses, and what is lost."""
    memory: str = ""
    """What one fit may take, as 4GB; by default its part of half of the machine's memory."""
    gpus_per_extractor: float = 1.0
    """Share of a GPU that runs one copy of a network."""
    gpus_per_fit: float = 0.25
    """Share of a GPU that fits a head, where networks run on GPUs; 0 fits heads on the CPUs."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward passes (autocast); another one extracts anew."""
    image_size: int = 0
    """Side in pixels of the images that networks see, where they are not bound to one; 0 is each model's own."""
    cache_images: bool = True
    """Keep decoded images beside the store."""
    data_seed: int = 0
    """Seed of the val splits, the order of the images and the noise; another one extracts anew."""
    seed: int = 0
    """Decides what is tried, and how heads begin."""
    atlas: bool = True
    """Add what was found of each pair to the folder atlas in --out, as layer_noise.py does; nothing is sent anywhere.
    --no-atlas adds nothing."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    store: str = "out/store"
    """Folder of features and results, shared by sweeps, or an address, as in layer_noise.py."""
    out: Path = Path("out")
    """Folder in which the sweep's own folder is made."""
    dry_run: bool = False
    """Say what each pair would cost, and stop."""
    sync: tuple[Path, ...] | None = None
    """Log finished sweeps to MLFLOW_TRACKING_URI, and stop: the folders that are named here, or all in --out."""


def sweep(config: Transfer, setup: "Setup | None" = None, started_seconds: float = 0) -> "Findings":
    """Run the sweep that the flags describe, or go on with it, and return what it has found.

    setup: what was checked and loaded, where the caller has it. started_seconds: when the caller began, since the
    epoch; the time that is reported counts from there, or from this call.
    """
    started = started_seconds or time.time()
    from sweeps.transferring import sweep as transferring

    return transferring.run(setup or transferring.set_up(config), started)


def main(config: Transfer) -> None:
    if config.sync is not None:
        print(cli.sync(config.sync, config.out, "transfer"))
        return
    started = time.time()
    from sweeps.transferring import sweep as transferring

    if config.dry_run:
        print(transferring.estimate(config))
        return
    setup = transferring.set_up(config)
    finished = transferring.finished_report(setup.folder, num_trials=config.num_trials)
    print(finished or transferring.report(sweep(config, setup, started)))
    cli.check_complete(transferring.incomplete(setup.folder))


if __name__ == "__main__":
    cli.run(main, Transfer, __doc__)
