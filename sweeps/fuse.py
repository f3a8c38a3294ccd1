"""Search combinations of the features that a sweep has extracted: blocks of one pass, and of several timesteps.

    python sweeps/fuse.py                                      # of the newest layer_noise.py sweep under out/
    python sweeps/fuse.py --sweep out/layer-noise-1a2b3c4d --max-passes 4
    python sweeps/fuse.py --dry-run                            # what it will cost

Blocks of one timestep come from one forward pass, so that reading several of them costs no more passes; another
timestep costs another pass an image. Ridge regression in closed form finds which features go together, with one
timestep, with two and so on; then Optuna and ASHA try these sets under heads that read several blocks. The best set of
each number of passes is fitted on all images and compared with the sweep's answer on the same val images. Where a set
gains no more than a standard error, the answer stays what it was. Stop it at any time: the same command goes on.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps import cli

if TYPE_CHECKING:
    from sweeps.fusing.findings import Findings
    from sweeps.fusing.sweep import Setup


@dataclass(frozen=True)
class Fuse:
    sweep: Path | None = None
    """Folder of a finished layer_noise.py sweep; the newest in --out if not given."""
    out: Path = Path("out")
    """Folder in which the sweep is looked for, and the results' own folder is made."""
    heads: tuple[str, ...] = ("joint", "joint-ridge", "stacked", "average", "attentive", "mlp")
    """joint, joint-ridge: linear on all blocks, none counting more because it is wide. stacked: on what a ridge a block
    says of images that it has not seen. average: the mean of an MLP a block. attentive: queries that read the tokens of
    all blocks. And the heads of layer_noise.py on the blocks side by side."""
    max_passes: int = 2
    """Timesteps that an answer may have at most; each costs a forward pass an image."""
    max_blocks: int = 6
    """Features that are added one by one at most; all blocks of a timestep are tried besides."""
    num_trials: int = 40
    """Cells that are tried."""
    memory: str = ""
    """What one fit may take, as 4GB; by default its part of half of the machine's memory."""
    dry_run: bool = False
    """Say what it would cost, and stop."""
    sync: tuple[Path, ...] | None = None
    """Log finished sweeps to MLFLOW_TRACKING_URI, and stop: the folders that are named here, or all in --out."""


def sweep(config: Fuse, setup: "Setup | None" = None, started_seconds: float = 0) -> "Findings":
    """Run the sweep that the flags describe, or go on with it, and return what it has found.

    setup: the loaded network and data, where the caller has them. started_seconds: when the caller began, since the
    epoch; the time that is reported counts from there, or from this call.
    """
    started = started_seconds or time.time()
    from sweeps.fusing import sweep as fusing

    with fusing.open_sweep(setup or fusing.set_up(config), started) as run:
        paths = run.select()
        trials = run.search(paths)
        return run.conclude(paths, trials, run.fit_best(trials))


def main(config: Fuse) -> None:
    if config.sync is not None:
        print(cli.sync(config.sync, config.out, "fuse"))
        return
    started = time.time()
    from sweeps.fusing import sweep as fusing

    setup = fusing.set_up(config)
    if config.dry_run:
        print(fusing.estimate(setup))
    else:
        finished = fusing.finished_report(setup.folder, num_trials=config.num_trials)
        print(finished or fusing.report(sweep(config, setup, started)))
        cli.check_complete(fusing.incomplete(setup.folder))


if __name__ == "__main__":
    cli.run(main, Fuse, __doc__)
