"""Sample images of chosen classes from a network that knows none, guided by a head on its own features.

    python sweeps/guide.py --classifier out/noisy-classifier --classes coat bag --scale 0 1 5 --num-samples 64
    python sweeps/guide.py --classifier out/noisy-classifier --scale 0 5 10 --num-samples 1000 \\
        --judge benchmarks/networks/judge --extractor benchmarks/networks/judge
    python sweeps/guide.py --classifier out/noisy-classifier --dry-run          # passes and time, and no image

--classifier is what sweeps/noisy_classifier.py makes: a head that names the class of noised images at any noise level.
In each step of the sampler its gradient comes from the pass that also denoises, so that a step costs 1 + kappa passes,
where kappa is the share of the network up to the head's block. DDPM, DDIM, EDM (Heun) and flows; pixels and latents.
Image i has class i modulo their number, and its noise depends on the seed and i alone: neither the batch nor the scale
changes it. Scale 0 is the unguided network. Stop it at any time: the same command goes on.

Writes scale-<s>/ with samples.npz and manifest.json (what makes the same images again), grid.png (classes by the scales
of this command), and guided.json (all that was measured of as many images). With a judge, a classifier that has never
seen these features, it prints how many samples it takes for their class, beside how many real images; with an extractor
FD, KD, precision and recall against real images of the classes.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sweeps import cli
from sweeps.flags import Drawing, ImagesAndLabels


@dataclass(frozen=True)
class Guidance:
    """What guides the samples, where to, and what judges them."""

    classifier: str = ""
    """Folder of a noise-conditional classifier, as sweeps/noisy_classifier.py makes it."""
    classes: tuple[str, ...] = ()
    """Names of the classes that the images are to be of, in turn; all of the classifier's if not given."""
    scale: tuple[float, ...] = (0, 1, 5)
    """How strongly images are guided: factors of the gradient of ln p(class | image). 0 does not guide, and what
    is negative guides away from the class."""
    backbone: str = ""
    """The network, to check that it is the one that the classifier was trained on; that one if not given."""
    dataset: str = ""
    """Real images to compare with, of the classifier's classes; those that it was trained on if not given."""
    judge: str = ""
    """Folder of a classifier (of hand_over.py, or benchmarks/networks/judge) that says which class a sample shows. It
    should be of another network than the one that is guided."""
    extractor: tuple[str, ...] = ()
    """Networks under which samples are compared with real images, as of sweeps/sample.py; none if not given."""


@dataclass(frozen=True)
class Guide(ImagesAndLabels, Drawing, Guidance):
    """The flags of this command."""

    steps: int = 50
    """Steps of the sampler, evenly over the timesteps that the network knows; no more than there are."""
    start: ClassVar[Literal["noise"]] = "noise"
    against: ClassVar[Literal["as-many"]] = "as-many"
    num_samples: int = 64
    """Images of each scale, with the classes in turn, and real images in each of the two sets that an extractor
    compares them with. More later go on from these."""


def main(config: Guide) -> None:
    from sweeps import guiding

    setup = guiding.set_up(config)
    if config.dry_run:
        print(guiding.estimate(setup))
        return
    print(guiding.run(setup))


if __name__ == "__main__":
    cli.run(main, Guide, __doc__)
