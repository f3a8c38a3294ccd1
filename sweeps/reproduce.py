"""Measure a published number again: the paper's network, images and recipe, by the machinery of the other commands.

    python sweeps/reproduce.py --list                              # all entries, what they expect and what they take
    python sweeps/reproduce.py ddae-cifar10-edm-linear --dry-run   # its cost, with 10 stored views or --views K
    python sweeps/reproduce.py ddae-cifar10-edm-linear --fresh-augmentation

The files of an entry lie in --models and --data-root; where some are missing, all of them are named, with where they
are to be had, and nothing is run. Measured stands beside published, and below what is done otherwise than in the paper.
Frozen features are extracted on all devices, then a head is trained by the paper's recipe; other entries fine-tune,
sample, or read a classifier's own scores. Test images are looked at once, at the end: nothing is chosen.

Stop it at any time: the same command goes on.

Environment: as layer_noise.py.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sweeps import cli


@dataclass(frozen=True)
class Reproduce:
    name: str = ""
    """The entry, which may also stand first without its flag."""
    list: bool = False
    """Print all entries, and stop."""
    models: Path = Path("models")
    """Folder of the published networks, under the names that --list gives."""
    data_root: str = "data"
    """Folder of the datasets."""
    views: int = 0
    """Stored views of every training image; each epoch sees one of them in turn. 0 is 10, or as many as there are
    epochs."""
    fresh_augmentation: bool = False
    """Store a view for each epoch, as if images were augmented anew: as many passes and as much room as epochs."""
    block: str = ""
    """Read this block instead of the paper's; where the paper does not say one, it must be given."""
    timestep: int = -1
    """Read it at this timestep instead of the paper's."""
    num_samples: int = 0
    """Sample so many images instead of the paper's 50,000; FIDs of other numbers cannot be compared."""
    batch_size: int = 64
    """Images that are sampled at once."""
    seed: int = 0
    """Decides the head's start, the order, the augmentation and the noise."""
    memory: str = ""
    """What a fit may take, as 4GB; by default half of the device."""
    store: str = "out/store"
    """Folder or address of features and checkpoints, as of layer_noise.py."""
    out: Path = Path("out")
    """Folder in which the entry's own folder is made."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    gpus_per_extractor: float = 1.0
    """Share of a GPU that runs one copy of the network."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward passes (autocast)."""
    check_data: bool = True
    """Open every image before anything is computed; of 100,000 images or more only 1,000."""
    dry_run: bool = False
    """Say what it would cost, and stop."""


def main(config: Reproduce) -> None:
    from sweeps.reproducing import runs

    if config.list:
        print(runs.list_entries())
        return
    setup = runs.set_up(config)
    if config.dry_run:
        print(setup.estimate())
        return
    finished = runs.finished_report(setup.folder)
    print(finished or runs.measure(setup).text)
    cli.check_complete(runs.incomplete(setup.folder))


if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--name")
    cli.run(main, Reproduce, __doc__)
