"""Rank every (block, timestep) of a diffusion model on images alone: no label is read, no head is fitted.

    python sweeps/label_free.py                                           # the model and images that ship with it
    python sweeps/label_free.py --backbone ./my-model --dataset ./my-images --timesteps 0 50 100
    python sweeps/label_free.py --num-labels 100                          # with the scores that want a few labels
    python sweeps/label_free.py --scores all                              # with those that the ranking does not sum
    python sweeps/label_free.py --backbone out/ddpm-digits --every 1000   # along a training by pretrain.py

Two noise draws of 256 images pass the network once at every timestep; a classifier, which knows no noise, sees the
images as they are, and flipped and cropped. It prints the ten sites that the consensus ranks first, what each score
alone would choose, and how sure the ranking is: what it does when the images are resampled. It writes a heat map, a
table and results.json. With --every it draws alignment against uniformity instead, one line a block and one point a
snapshot (DDAE paper, Figure 3).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sweeps import cli
from sweeps.flags import ModelAndData

if TYPE_CHECKING:
    from sweeps.probing.ranking import Ranking, Trajectories


@dataclass(frozen=True)
class LabelFreeRanking(ModelAndData):
    num_images: int = 256
    """So many training images, or all if there are fewer, twice each."""
    num_labels: int = 0
    """The first so many labels are shown to LogME, H-score and ridge, of which ridge joins the ranking."""
    scores: Literal["consensus", "all"] = "consensus"
    """consensus: the scores that the ranking sums. all: every score that is known, which changes no ranking and takes
    several times as long, with one more pass of every image, turned."""
    every: int = 0
    """Follow the snapshots `step-<n>` in the folder --backbone whose n is a multiple of this, at the timestep that
    --timesteps gives; of several, at the one that ranks first in the last snapshot."""


def measure(config: LabelFreeRanking) -> "Ranking | Trajectories":
    """Rank the sites of a network, or with `every` follow the scores along its training, and write figure and table."""
    from sweeps.probing import ranking

    return ranking.follow(config) if config.every else ranking.rank(config)


def main(config: LabelFreeRanking) -> None:
    from sweeps.probing import ranking

    if config.dry_run:
        print(ranking.estimate(config))
        return
    found = measure(config)
    print(found.text)
    cli.check_complete(found.incomplete)


if __name__ == "__main__":
    cli.run(main, LabelFreeRanking, __doc__)
