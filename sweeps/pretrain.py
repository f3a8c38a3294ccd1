"""Pre-train a diffusion network on a dataset's train split: the network whose features a sweep then searches.

    python sweeps/pretrain.py                    # the one that ships with the package; 85 minutes on 2 cores
    python sweeps/pretrain.py --steps 500        # a smoke test
    python sweeps/pretrain.py --family edm       # or flow; --network unet, ddpm++ or dit goes with each
    python sweeps/pretrain.py --num-workers 2    # two processes share every batch, and a GPU each where there are GPUs

Logs loss, learning rate, images a second and grids of samples to MLflow as it runs, with or without a server there.
Writes a diffusers folder (fp16 weights of the exponential moving average, scheduler, model card), loss.png and
samples.png; with --snapshot-every N also such folders on the way, step-N, step-2N, ... Stop it at any time: the same
command goes on from the last checkpoint. At RAY_ADDRESS the cluster's machines train; they need the dataset's files,
and snapshots an --out that all of them see.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sweeps import cli
from sweeps.flags import ImagesAndLabels
from sweeps.recipes import RECIPES


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    recipe: str = ""
    """A training by name: ddpm-fashion-mnist (the default), ddpm-cifar10, edm-cifar10, ddpm-tiny-imagenet or
    edm-tiny-imagenet, with the papers' settings. It sets the defaults of the others, as --recipe NAME --help shows."""
    family: Literal["ddpm", "edm", "flow", "vae"] = "ddpm"
    """Kind of diffusion: DDPM, EDM, or rectified flow; or an autoencoder, whose latents --latents takes."""
    network: Literal["auto", "unet", "ddpm++", "dit"] = "auto"
    """DDPM's UNet, DDPM++ or DiT; auto is the UNet for ddpm and flow, and DDPM++ for edm."""
    dataset: str = "fashion-mnist"
    """Name or image folder; only its official train split is used."""
    out: Path | None = None
    """Folder for the model, the checkpoint and the pictures; out/<family>-<dataset> if not given."""
    steps: int = 12_000
    batch_size: int = 64
    """Images of a step, those of all processes and parts together."""
    accumulate: int = 1
    """Parts in which each process has its images of a step go through the network, to need less memory."""
    learning_rate: float = 1e-3
    """Peak."""
    warmup: int = 500
    """Steps in which the learning rate grows to its peak."""
    decay: Literal["cosine", "none"] = "cosine"
    """How it falls after that: along half a cosine to zero, or not at all."""
    max_gradient_norm: float = 1.0
    """Longer gradients are shortened to this; inf leaves them alone."""
    ema_decay: float = 0.999
    dropout: float = 0.0
    num_levels: int = 1000
    """ddpm and flow: T, the timesteps that noise is counted in."""
    beta_range: tuple[float, float] = (1e-4, 0.02)
    """ddpm: the betas of the first and of the last of the T timesteps; they grow linearly."""
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """unet, ddpm++ and vae: width of each resolution, highest first."""
    layers_per_block: int = 1
    """unet, ddpm++ and vae: residual blocks of a resolution on the way down."""
    attention: tuple[int, ...] = ()
    """unet and ddpm++: sides of the maps that have attention; those of the third resolution if not given."""
    stem_channels: int = 0
    """ddpm++: width behind the first convolution; 0 is that of the highest resolution."""
    hidden_size: int = 192
    """dit: width, a multiple of 64."""
    depth: int = 6
    """dit: number of blocks."""
    patch_size: int = 2
    """dit: side of the patches that become tokens."""
    latent_channels: int = 4
    """vae: channels of a latent, whose side is halved once a width less than there are."""
    latents: Path | None = None
    """Folder of an AutoencoderKL, as --family vae makes it, whose latents are denoised in place of pixels; they are
    encoded once and kept beside --out, where other trainings find them."""
    class_conditional: bool = False
    """Show the network the class of each image, or, of a tenth of them, a null class, which features are taken with."""
    flip: bool = False
    """Mirror every second image."""
    augment: float = 0.0
    """ddpm++: EDM's augmentation, which the network is told of, with this probability for each change (0.12 in the
    paper); every second image is mirrored besides."""
    image_size: int = 32
    """Side in pixels to which an image folder is resized; the named datasets keep theirs."""
    seed: int = 0
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    autocast: bool = True
    """bfloat16 where it is safe, on GPUs and on CPUs with instructions for it; weights and their moving average stay
    float32."""
    compile: bool = False
    """torch.compile: faster steps after minutes of compiling."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    sample_every: int = 2500
    """Steps between grids of samples, which are kept in --out and logged to MLflow; 0 draws none on the way."""
    snapshot_every: int = 0
    """Steps between copies of the network that are kept beside the model, for `label_free.py --every`; 0 keeps none."""
    num_workers: int = 1
    """Processes that train together, each on its share of every batch, which they must share evenly; their number
    changes losses in the last digits alone, unless there is dropout."""
    dry_run: bool = False
    """Say what it would cost, by a few steps, and stop."""


@dataclass(frozen=True)
class Pretrain(ImagesAndLabels, Training):
    """The flags of this command."""


def main(config: Pretrain) -> None:
    from sweeps import pretraining

    training = pretraining.set_up(config)
    if config.dry_run:
        print(pretraining.estimate(config, training))
        return
    with pretraining.tracked_training(config, training) as tracked:
        trained = pretraining.train(config, training, tracked)
        text, lacking = pretraining.publish(config, training, trained, tracked)
    print(text)
    cli.check_complete(lacking)


if __name__ == "__main__":
    cli.run(main, Pretrain, __doc__, RECIPES)
