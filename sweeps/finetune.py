"""Fine-tune a diffusion model, cut after its best block, as a classifier; beside it the same network trained from
scratch, and frozen under the same head.

    python sweeps/finetune.py                                     # the cell that the newest layer_noise.py sweep chose
    python sweeps/finetune.py --sweep out/layer-noise-1a2b3c4d --num-labels 100 1000
    python sweeps/finetune.py --backbone ./my-model --dataset ./my-images --block up.1.1 --timestep 30 --dry-run

The network is cut after the block, with the skip connections that the kept blocks need; the cell's pooling and head go
on top, and all of it is trained on images as they are, flipped and cropped (DDAE; --recipe gans noises them as well).
Every start and every number of labels has a search of its own over learning rates, whose rungs are steps of one
trajectory; what is best on val is repeated with other seeds. final_test.py then looks at the test set, once.

Stop it at any time: the same command goes on from the last checkpoints.

Environment: as layer_noise.py.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sweeps import cli
from sweeps.flags import ModelAndData

if TYPE_CHECKING:
    from sweeps.finetuning.findings import Findings
    from sweeps.finetuning.sweep import Setup


@dataclass(frozen=True)
class Finetune(ModelAndData):
    sweep: Path | None = None
    """Folder of a finished layer_noise.py sweep, whose model, data and answer are taken; without --block the newest
    one in --out."""
    block: str = ""
    """The block after which the network is cut, where no sweep says it."""
    timestep: int = 0
    """The timestep that the network is told, where no sweep says it."""
    pooling: int = 1
    """Side of the grid to which the block's map is averaged, where no sweep says it."""
    head: str = "linear"
    """linear, mlp, cnn or attention, with sizes as in layer_noise.py, where no sweep says it."""
    init: tuple[Literal["finetune", "scratch", "frozen"], ...] = ("finetune", "scratch", "frozen")
    """finetune begins with the pre-trained weights, scratch with random ones; frozen fits the head alone."""
    cut: tuple[str, ...] = ()
    """Cut after these blocks instead; later ones keep more of the network."""
    tell: tuple[int, ...] = ()
    """Tell the network these timesteps instead."""
    recipe: Literal["ddae", "ddae-dit", "gans", "classifier"] = "ddae"
    """How the papers train: DDAE (Adam, cosine), DDAE for DiT, Diffusion Models Beat GANs (SGD, steps, noised), or
    networks that are built to classify (SGD with momentum, cosine)."""
    noised: bool = False
    """Noise the images at the timestep; the recipe gans always does."""
    augment: tuple[Literal["flip+crop", "crop", "flip", "large-crop", "resized-crop", "none"], ...] = (
        "flip+crop",
        "none",
    )
    """How a training image is changed each time it is seen; what is searched: flipped, shifted by up to an eighth of
    the side, or cropped to 80 to 100 % of the side (large-crop) or 8 to 100 % of the area (resized-crop). Digits and
    letters should not be flipped."""
    num_labels: tuple[int, ...] = ()
    """Train on so many labelled images; all of them if not given."""
    learning_rates: tuple[float, ...] = ()
    """What is searched; the recipe's if not given."""
    weight_decays: tuple[float, ...] = ()
    """What is searched; the recipe's if not given."""
    head_start: tuple[Literal["fresh", "probe"], ...] = ("fresh", "probe")
    """Begin with an untrained head, or with the one that was fitted on the frozen features."""
    epochs: tuple[int, ...] = ()
    """How long fine-tuning lasts, one number or one for each of --num-labels; the recipe's if not given, but 500 steps
    or more."""
    scratch_epochs: tuple[int, ...] = ()
    """How long training from scratch lasts, in the same way; 200 if not given."""
    baseline: tuple[str, ...] = ()
    """Networks that are trained whole from scratch beside it, for comparison, such as wrn:28-10, timm:resnet18@random,
    or wrn:28-10@./my-vae on latents; average pooling, a linear head, and the recipe of DDAE's table 8 for them."""
    baseline_size: int = 0
    """Side in pixels of the images that the baselines see; 0 is their own."""
    batch_size: int = 0
    """The recipe's if not given."""
    num_workers: int = 1
    """Processes that train one network together, each on a device of its own; they share a batch."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    num_trials: int = 12
    """Cells that are tried for every start and number of labels."""
    seeds: int = 3
    """How often the best cell of each is trained in all, to know its standard error."""
    seed: int = 0
    """The first seed: of the labelled images, the head, the order and the augmentation."""
    sync: tuple[Path, ...] | None = None
    """Log finished sweeps to MLFLOW_TRACKING_URI, and stop: the folders that are named here, or all in --out."""


def sweep(config: Finetune, setup: "Setup | None" = None, started_seconds: float = 0) -> "Findings":
    """Run the sweep that the flags describe, or go on with it, and return what it has found.

    setup: the loaded network and data, where the caller has them. started_seconds: when the caller began, since the
    epoch; the time that is reported counts from there, or from this call.
    """
    started = started_seconds or time.time()
    from sweeps.finetuning import sweep as finetuning

    with finetuning.open_sweep(setup or finetuning.set_up(config), started) as run:
        searched = run.search()
        repeated = run.repeat(searched)
        return run.conclude(searched, repeated)


def main(config: Finetune) -> None:
    if config.sync is not None:
        print(cli.sync(config.sync, config.out, "finetune"))
        return
    started = time.time()
    from sweeps.finetuning import sweep as finetuning

    setup = finetuning.set_up(config)
    if config.dry_run:
        print(finetuning.estimate(setup))
    else:
        finished = finetuning.finished_report(setup.folder, num_trials=config.num_trials)
        print(finished or finetuning.report(sweep(config, setup, started)))
        cli.check_complete(finetuning.incomplete(setup.folder))


if __name__ == "__main__":
    cli.run(main, Finetune, __doc__)
