"""Find the best frozen feature of a diffusion model: block x timestep x pooling x head.

    python sweeps/layer_noise.py                                             # the model and images that ship with it
    python sweeps/layer_noise.py --backbone google/ddpm-cifar10-32 --dataset cifar10
    python sweeps/layer_noise.py --backbone ./my-model --dataset ./my-images --dry-run

A few hundred noised images pass the network once at every timestep; all blocks are kept, pooled, as Arrow shards, and
screened by ridge regression. The better half of the timesteps is screened again on four times as many images, down to
the blocks that are statistically tied with the best, and so on. At what is left Optuna proposes cells, and ASHA stops
the worse ones on a quarter of the images. Of a large set all this sees a part, and the answer alone is fitted on all of
it. Val is carved from train; the test set is left to final_test.py.

Stop it at any time: the same command goes on, computes nothing twice and logs nothing twice. With --fuse, blocks and
timesteps are then tried together.

Environment: RAY_ADDRESS (a cluster; else this machine), MLFLOW_TRACKING_URI (else sqlite:///mlflow.db), HF_HOME,
CUDA_VISIBLE_DEVICES; for a store at an address AWS_ENDPOINT_URL and the like, and XDG_CACHE_HOME.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from storage.tracking import make_ahead
from sweeps import cli, fuse
from sweeps.findings import again
from sweeps.flags import ModelAndData
from sweeps.fuse import Fuse

if TYPE_CHECKING:
    from sweeps.probing.findings import Findings
    from sweeps.probing.plan import Setup


@dataclass(frozen=True)
class LayerNoise(ModelAndData):
    poolings: tuple[int, ...] = (1, 2, 4)
    """Average-pool each map to p x p numbers a channel."""
    heads: tuple[str, ...] = ("linear", "mlp")
    """linear (logistic regression), logistic, ridge, knn, ddae, bn-linear, mlp, cnn, attention; with sizes as in the
    papers: mlp-1024, mlp-2048-2048, cnn-256-256, attention-3."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    """optuna and random stop the worse cells early (ASHA); grid fits every cell on all images."""
    search_images: int | Literal["auto", "all"] = "auto"
    """Training images that the search has at most; the answer is then fitted on all there are. auto divides them by
    four as often as 1,000 are left, and 50 a class; all is every image."""
    num_trials: int = 40
    """Cells that optuna or random try."""
    round_size: int | None = None
    """Cells that optuna proposes at once, to be fitted side by side; by default a tenth of the trials, 4 at least. What
    is tried depends on it, and not on the CPUs."""
    keep: float = 0.5
    """Share of the timesteps that stay after each round of screening; --keep 0.25 --finalists 1 is the thriftiest."""
    finalists: int = 2
    """So many timesteps stay to the end, but for those where every block is clearly worse."""
    start: Literal["ridge", "label-free"] = "ridge"
    """What makes the first cut of the timesteps: ridge on the labels of a few images, or the label-free ranking, which
    leaves out the first round of screening."""
    warm_start: Path | None = None
    """An atlas, as out/atlas: begin at the sites that won on other datasets, for the same network or else for others of
    its class, matched by noise and depth. That takes the place of the first round of screening."""
    atlas: bool = True
    """Add what was found to the folder atlas beside the sweep's own in --out, one small file a sweep, for --warm-start
    and for atlas.py: fingerprints and names of the network and of a public dataset, sizes, the ranking of sites, the
    answer, accuracies. It holds no path, no user and no image, and is sent nowhere. --no-atlas adds nothing."""
    metric: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    """What chooses; balanced accuracy, the mean of the classes' own, is measured beside accuracy of uneven classes."""
    prefer: Literal["best", "cheapest"] = "best"
    """Which of the cells that are statistically tied with the best is the answer."""
    views: int = 1
    """Views of every training image that heads are fitted on: 1 is the image as it is, more are flipped and cropped."""
    memory: str = ""
    """What one fit may take, as 4GB: features that are larger are read from the store block by block. By default the
    fit's part of half of the machine's memory."""
    gpus_per_fit: float = 0.25
    """Share of a GPU that fits a head, where networks run on GPUs; 0 fits heads on the CPUs. Half of each GPU is for
    fits."""
    seed: int = 0
    """Decides what is tried, and how heads begin."""
    fuse: bool = False
    """Then search combinations of the features that were extracted, as fuse.py does by default."""
    list_blocks: bool = False
    """Print the model's blocks, and stop."""
    all: bool = False
    """With --list-blocks: every module that returns a map of the image, by the path that --blocks takes."""
    sync: tuple[Path, ...] | None = None
    """Log finished sweeps to MLFLOW_TRACKING_URI, and stop: the folders that are named here, or all in --out."""


def sweep(config: LayerNoise, setup: "Setup | None" = None, started_seconds: float = 0) -> "Findings":
    """Run the sweep that the flags describe, or go on with it, and return what it has found.

    setup: the loaded network and data, where the caller has them. started_seconds: when the caller began, since the
    epoch; the time that is reported counts from there, or from this call.
    """
    started = started_seconds or time.time()
    from sweeps.probing import sweep as probing

    setup = setup or probing.set_up_search(config)
    with probing.open_sweep(config, setup.task, started) as search:
        label_free = search.label_free() if config.start == "label-free" else None
        screening = search.screen(search.rules, label_free.ranking if label_free else search.warm.ranking)
        label_free = label_free or search.label_free()
        trials = search.search(screening)
        answer = search.answer(screening, trials)
        return search.conclude(screening, label_free, trials, answer)


def look_ahead(config: LayerNoise) -> str:
    """What --list-blocks and --dry-run say, without loading what only a sweep needs."""
    from sweeps.probing import plan

    if config.list_blocks:
        return plan.list_blocks(config, config.all)
    setup = plan.set_up_search(config)
    check_fuse(config, setup)
    fusing = f"\nfuse            up to {Fuse.max_passes} timesteps; ask fuse.py --dry-run once the sweep is done"
    return plan.estimate(config, setup) + fusing * config.fuse


def check_fuse(config: LayerNoise, setup: "Setup") -> None:
    if config.fuse and len(setup.task.space.blocks) == len(setup.task.space.timesteps) == 1:
        raise ValueError("fuse=True wants several blocks or timesteps; give more, or leave it out")


def run(config: LayerNoise, key: str, started: float) -> None:
    """Print what the sweep has found, or has found before. key, started: of again.py."""
    make_ahead()
    from sweeps.probing import sweep as probing

    setup = probing.set_up_search(config)
    check_fuse(config, setup)
    folder = probing.sweep_folder(config, setup.task)
    finished = probing.finished_report(folder, num_trials=config.num_trials, prefer=config.prefer)
    printed = finished or probing.report(sweep(config, setup, started))
    print(printed)
    cli.check_complete(probing.incomplete(folder))
    if config.fuse:
        print()
        fuse.main(Fuse(sweep=folder, out=config.out, memory=config.memory))
    else:
        probing.remember(key, config, setup, folder, printed, started)


def main(config: LayerNoise) -> None:
    started, key = time.time(), again.key_of(config)
    if config.sync is not None:
        print(cli.sync(config.sync, config.out, "layer-noise"))
    elif config.all and not config.list_blocks:
        raise ValueError("all=True goes with --list-blocks alone")
    elif config.list_blocks or config.dry_run:
        print(look_ahead(config))
    elif known := again.report(key, config.out, "layer-noise"):
        print(known)
    else:
        run(config, key, started)


if __name__ == "__main__":
    cli.run(main, LayerNoise, __doc__)
