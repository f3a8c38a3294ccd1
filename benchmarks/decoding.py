"""What keeping decoded images beside the store saves: JPEGs of 256 pixels, seen at 64 at seven timesteps.

    python benchmarks/decoding.py          # 3,200 images, about ten minutes

Features of the first block of a small random network are extracted by one process into a new store, with the images
kept and without, in turn. Seconds of decoding are those in the decoder, which has a thread a core. The pictures are
made, and weigh as photographs do, unless a folder is given.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import record
import torch
import tyro
from PIL import Image
from torch import Tensor

from sweeps.flags import ModelAndData
from sweeps.probing.extractor import Extractor
from sweeps.probing.source import FeatureSource, Need
from sweeps.probing.sweep import set_up
from sweeps.probing.task import ProbeTask

TIMESTEPS = (0, 10, 30, 60, 100, 250, 600)


@dataclass(frozen=True)
class Decoding:
    num_images: int = 3200
    repeats: int = 3
    folder: Path | None = None
    """Of images, one sub-folder a class."""


def main(config: Decoding) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        folder = config.folder or write_pictures(root / "pictures", config.num_images)
        flags = ModelAndData(
            write_network(root / "network"), str(folder), blocks=("down.0.0",), timesteps=TIMESTEPS,
            store=str(root / "store"), check_data=False,
        )  # fmt: skip
        task = set_up(flags).task
        cases: dict[str, list[dict[str, float]]] = {"kept": [], "decoded every time": []}
        for number in range(config.repeats):
            for name, measured in cases.items():
                store = str(root / f"{name} {number}")
                source = replace(task.source, store=store, cache_images=name == "kept")
                measured.append(extract_all(task, source))
        image_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*.*"))
    rows = {
        name: {what: median(one[what] for one in measured) for what in measured[0]} for name, measured in cases.items()
    }
    for name, row in rows.items():
        print(f"{name:<20}" + "  ".join(f"{what} {value:,.1f}" for what, value in row.items()))
    num_images = task.num_train + task.num_val
    record.write("decoding", {"num_images": num_images, "jpeg_bytes": image_bytes, "medians": rows, "measured": cases})


def extract_all(task: ProbeTask, source: FeatureSource) -> dict[str, float]:
    """Wall seconds, seconds of decoding, and how many images were decoded."""
    extractor = Extractor(source)
    clock: list[float] = []
    if extractor.images:
        extractor.images.decode = timed(extractor.images.decode, clock)
    else:
        images = extractor.dataset.images
        extractor.dataset = replace(extractor.dataset, images=replace(images, read=timed(images.read, clock)))
    started = time.perf_counter()
    for split, num_images in (("train", task.num_train), ("val", task.num_val)):
        for timestep in TIMESTEPS:
            extractor.ensure(Need(timestep, split, num_images, task.space.block_names))
    return {"wall_seconds": time.perf_counter() - started, "decode_seconds": sum(clock)}


def timed(read: Callable[[np.ndarray], Tensor], clock: list[float]) -> Callable[[np.ndarray], Tensor]:
    def read_timed(rows: np.ndarray) -> Tensor:
        started = time.perf_counter()
        pixels = read(rows)
        clock.append(time.perf_counter() - started)
        return pixels

    return read_timed


def write_pictures(folder: Path, num_images: int) -> Path:
    """Smooth coloured clouds with grain, in four classes."""
    rng = np.random.default_rng(0)
    for number in range(num_images):
        path = folder / f"class{number % 4}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cloud = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(cloud).resize((256, 256), Image.Resampling.BICUBIC)).astype(int)
        grainy = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(path, quality=90)
    return folder


def write_network(folder: Path) -> str:
    """A pipeline folder of diffusers with a random UNet of 64x64 images."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=64, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=1000)).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main(tyro.cli(Decoding, description=__doc__))
