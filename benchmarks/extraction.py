"""Capturing every block, pooled, as float16, to disk, against the bare forward pass of the same network.

python benchmarks/extraction.py          # about a minute on one core
"""

import tempfile
from dataclasses import dataclass
from statistics import median

import record
import torch
import tyro

from ddae.backbones import load_backbone
from ddae.datasets import load_dataset
from ddae.features import FeatureKey, extract
from ddae.noise import image_noise, vp_diffuse
from storage.feature_store import FeatureStore


@dataclass
class Extraction:
    backbone: str = "ddpm-fashion-mnist"
    num_images: int = 256
    batch_size: int = 64
    repeats: int = 9
    timestep: int = 60


def main(config: Extraction) -> None:
    torch.set_num_threads(1)
    backbone = load_backbone(config.backbone)
    dataset = load_dataset("fashion-mnist-8k", backbone.image_size)
    rows = dataset.splits["train"][: config.num_images]
    key = FeatureKey("", "", split_seed=0, val_fraction=0.2, noise_seed=0, draw=0, pooling=4)
    names = [block.name for block in backbone.blocks]
    batches = []
    for start in range(0, len(rows), config.batch_size):
        batch = rows[start : start + config.batch_size]
        x0 = backbone.encode(dataset.images.read(batch))
        noise = image_noise(batch, tuple(x0.shape[1:]), config.timestep, 0)
        batches.append(vp_diffuse(x0, noise, float(backbone.alphas_cumprod[config.timestep])))

    @torch.inference_mode()
    def bare() -> None:
        for x_t in batches:
            backbone.unet(x_t, config.timestep)

    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(folder)

        def capture() -> None:
            for name, values in extract(
                backbone, dataset, rows, config.timestep, names, key, config.batch_size
            ).items():
                store.write(f"t={config.timestep}/block={name}", 0, values)

        def up_to(name: str):
            return lambda: extract(backbone, dataset, rows, config.timestep, [name], key, config.batch_size)

        cases = {"bare forward": bare, "all blocks, pooled, written": capture, "stopped after mid": up_to("mid")}
        cases |= {f"stopped after {name}": up_to(name) for name in ("up.1.1",) if name in names}
        seconds = record.interleave(cases, config.repeats)
    results = {
        name: {
            "milliseconds_an_image": 1000 * median(times) / config.num_images,
            "of_bare": record.ratio(seconds, name, "bare forward"),
        }
        for name, times in seconds.items()
    }
    for name, row in results.items():
        print(f"{name:<28} {row['milliseconds_an_image']:7.2f} ms an image   {row['of_bare']:.3f} of bare")
    record.write("extraction", results)


if __name__ == "__main__":
    main(tyro.cli(Extraction, description=__doc__))
