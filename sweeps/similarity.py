"""Measure how similar the features of blocks, timesteps, poolings and networks are, without a label: linear CKA.

    python sweeps/similarity.py                                    # the model and images that ship with it
    python sweeps/similarity.py --against timm:resnet18.a1_in1k torchvision:vit_b_16 --timesteps 0 60 250
    python sweeps/similarity.py --backbone ./my-model --against ./its-older-self --dataset ./my-images --poolings 1 4

The same 512 images pass each network once at every timestep; what the store has is not extracted again. CKA is
estimated without bias from minibatches of 128 (Nguyen, Raghu & Kornblith 2021). It prints the means, and writes a heat
map and a table.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeps import cli
from sweeps.flags import ModelAndData

if TYPE_CHECKING:
    from sweeps.probing.comparison import Comparison


@dataclass(frozen=True)
class Similarity(ModelAndData):
    against: tuple[str, ...] = ()
    """Networks to compare with, each as --backbone takes it; with itself where there is none."""
    against_blocks: tuple[str, ...] = ()
    """The blocks of those networks; all of them if not given."""
    against_timesteps: tuple[int, ...] = ()
    """Timesteps in those networks' own counting; by default up to nine of them."""
    poolings: tuple[int, ...] = (4,)
    """Average-pool each map to p x p numbers a channel, but for smaller maps; several are compared as well."""
    num_images: int = 512
    """So many training images, or all if there are fewer."""


def compare(config: Similarity) -> "Comparison":
    """Measure how similar the features of the networks are, and write a heat map and a table."""
    from sweeps.probing import comparison

    return comparison.compare(config)


def main(config: Similarity) -> None:
    from sweeps.probing import comparison

    if config.dry_run:
        print(comparison.estimate(config))
        return
    found = compare(config)
    print(found.text)
    cli.check_complete(found.incomplete)


if __name__ == "__main__":
    cli.run(main, Similarity, __doc__)
