"""Pre-train a small DDPM or EDM on a dataset's train split: the network whose features a sweep then searches.

    python sweeps/pretrain.py                    # the one that ships with the package; 85 minutes on 2 cores
    python sweeps/pretrain.py --steps 500        # a smoke test
    python sweeps/pretrain.py --family edm
    python sweeps/pretrain.py --num-workers 2    # two processes share every batch, and a GPU each where there are GPUs

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


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    family: Literal["ddpm", "edm"] = "ddpm"
    """DDPM's UNet and loss, or DDPM++ with EDM's preconditioning."""
    dataset: str = "fashion-mnist"
    """Name or image folder; only its official train split is used."""
    out: Path | None = None
    """Folder for the model, the checkpoint and the pictures; out/<family>-<dataset> if not given."""
    steps: int = 12_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    """Peak; linear warm-up over 500 steps, then cosine to zero."""
    ema_decay: float = 0.999
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Width of each resolution, highest first."""
    image_size: int = 32
    """Side in pixels to which an image folder is resized; the named datasets keep theirs."""
    seed: int = 0
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    autocast: bool = True
    """bfloat16 where it is safe; weights and their moving average stay float32."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    snapshot_every: int = 0
    """Steps between copies of the network that are kept beside the model, for `label_free.py --every`; 0 keeps none."""
    num_workers: int = 1
    """Processes that train together, each on its share of every batch, which they must share evenly; their number
    changes losses in the last digits alone."""


@dataclass(frozen=True)
class Pretrain(ImagesAndLabels, Training):
    """The flags of this command."""


def main(config: Pretrain) -> None:
    from sweeps import pretraining

    training = pretraining.set_up(config)
    trained = pretraining.train(config, training)
    text, undrawn = pretraining.publish(config, training, trained)
    print(text)
    cli.check_complete(undrawn)


if __name__ == "__main__":
    cli.run(main, Pretrain, __doc__)
