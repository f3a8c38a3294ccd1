"""Capturing every block, pooled, as float16, to disk, against the bare forward pass of the same network.

python benchmarks/extraction.py --stop up.1.1                                # two minutes on one core
python benchmarks/extraction.py --backbone ddpmpp --stop out_6 --num-images 4 --repeats 5 --variants float32 bfloat16
python benchmarks/extraction.py --backbone adm-256 --stop b24 --device cuda --variants bfloat16 bfloat16+compile

adm-256, dit-xl-2 and ddpmpp are the published networks at full size with random weights. Latents are random: the passes
of the VAE are not in the figures.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import record
import torch
import tyro

from ddae.backbones import Backbone, Settings, ddpm, dit, edm, load_backbone
from ddae.backbones.song_unet import SongUNet2DModel
from ddae.backbones.unets import unet_inputs
from ddae.datasets import Dataset, Images
from ddae.features import FeatureKey, extract, fitting_batch
from ddae.noise import VP, image_noise
from storage.feature_store import FeatureStore


@dataclass
class Extraction:
    backbone: str = "ddpm-fashion-mnist"
    """As in every command, or a name in REAL_SIZE."""
    stop: str = ""
    """A block, by its own or the paper's name: the pass that stops there is timed too."""
    variants: tuple[str, ...] = ("float32", "float32+channels_last", "bfloat16")
    """Precision, with +channels_last and +compile."""
    num_images: int = 256
    batch_size: int = 0
    """0 is what extraction would take."""
    repeats: int = 9
    device: str = "cpu"


def adm_256(settings: Settings) -> Backbone:
    """552.8M parameters (Dhariwal & Nichol 2021)."""
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=256,
        out_channels=6,
        layers_per_block=2,
        block_out_channels=(256, 256, 512, 512, 1024, 1024),
        down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=64,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
    )
    return ddpm.make_backbone(unet, VP(LINEAR), unet_inputs, "random", settings)


def dit_xl_2(settings: Settings) -> Backbone:
    """675M parameters (Peebles & Xie 2023), of 256-pixel images; the VAE, which is not timed, is a small one."""
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    with tempfile.TemporaryDirectory() as folder:
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8,) * 4,
            norm_num_groups=4,
        ).save_pretrained(f"{folder}/vae")
        transformer = DiTTransformer2DModel(num_embeds_ada_norm=1000)
        return dit.make_backbone(transformer, VP(LINEAR), Path(folder), "random", settings)


def ddpmpp(settings: Settings) -> Backbone:
    """55.7M parameters (Karras et al. 2022, CIFAR-10)."""
    return edm.make_backbone(SongUNet2DModel(), {}, "random", settings)


LINEAR = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)

REAL_SIZE: dict[str, Callable[[Settings], Backbone]] = {"adm-256": adm_256, "ddpmpp": ddpmpp, "dit-xl-2": dit_xl_2}


def main(config: Extraction) -> None:
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cases, backbones = {}, {}
        for variant in config.variants:
            precision, *options = variant.split("+")
            settings = Settings(config.device, precision, "channels_last" in options, "compile" in options)
            make = REAL_SIZE.get(config.backbone, lambda settings: load_backbone(config.backbone, settings))
            backbones[variant] = make(settings)
            cases |= {f"{variant}: {name}": run for name, run in time_of(config, backbones[variant], folder).items()}
        seconds = record.interleave(cases, config.repeats)
    backbone = next(iter(backbones.values()))
    ceiling = matmul_flops(config.device, config.variants)
    results = {}
    for name, times in seconds.items():
        variant, _, case = name.partition(": ")
        of_bare = record.ratio(seconds, name, f"{variant}: bare forward")
        row = {
            "milliseconds_an_image": 1000 * median(times) / config.num_images,
            "images_a_second": config.num_images / median(times),
            "of_bare": of_bare,
            "bare_of_first_variant": record.ratio(seconds, f"{variant}: bare forward", next(iter(seconds))),
        }
        if case == "bare forward":
            row["share_of_matmul_ceiling"] = backbone.flops * row["images_a_second"] / ceiling[variant]
        results[name] = row
        print(f"{name:<52} {row['milliseconds_an_image']:9.2f} ms an image   {of_bare:.3f} of bare")
    for variant in config.variants:
        row = results[f"{variant}: bare forward"]
        print(
            f"{variant}: {row['images_a_second']:.1f} images a second, {row['share_of_matmul_ceiling']:.0%} of the "
            f"{ceiling[variant] / 1e9:,.0f} GFLOP/s of a large matrix product, "
            f"{1 / row['bare_of_first_variant']:.2f} times the speed of {config.variants[0]}"
        )
    suffix = "" if config.backbone == "ddpm-fashion-mnist" else f"_{config.backbone.replace('-', '_')}"
    record.write(f"extraction{suffix}{'' if config.device == 'cpu' else '_gpu'}", results)


def time_of(config: Extraction, backbone: Backbone, folder: str) -> dict[str, Callable[[], object]]:
    """What is timed of a network: the bare pass, and extraction of all blocks and up to one of them."""
    timestep = backbone.schedule.defaults[3]
    rng = np.random.default_rng(0)
    encoded = rng.standard_normal((config.num_images, int(np.prod(backbone.encoder.shape)))).astype(np.float16)
    rows = np.arange(config.num_images)
    dataset = Dataset("random", Images(("a", "b"), rows % 2, config.num_images, None, ""), {"train": rows})
    key = FeatureKey("", "", split_seed=0, val_fraction=0.2, noise_seed=0, draw=0, pooling=4)
    batch_size = config.batch_size or min(config.num_images, fitting_batch(backbone))
    batches = []
    for start in range(0, config.num_images, batch_size):
        x0 = torch.from_numpy(encoded[start : start + batch_size]).to(config.device).float()
        x0 = x0.view(-1, *backbone.encoder.shape)
        noise = image_noise(rows[start : start + batch_size], backbone.encoder.shape, timestep, 0)
        batches.append(backbone.noised(x0, noise, timestep))
    dtype = getattr(torch, backbone.settings.precision)
    network = torch.compile(backbone.network) if backbone.settings.compile else backbone.network

    @torch.inference_mode()
    def bare() -> None:
        for x_t in batches:
            with torch.autocast(x_t.device.type, dtype, enabled=dtype != torch.float32):
                network(**backbone.inputs(x_t, timestep))
        if config.device.startswith("cuda"):
            torch.cuda.synchronize()

    store = FeatureStore(folder)

    def up_to(names: list[str]) -> Callable[[], None]:
        def run() -> None:
            features = extract(backbone, dataset, rows, timestep, names, key, batch_size, encoded)
            for name, values in features.items():
                store.write(f"t={timestep}/block={name}", 0, values)

        return run

    cases = {"bare forward": bare, "all blocks, pooled, written": up_to([block.name for block in backbone.blocks])}
    for block in backbone.blocks:
        if config.stop and config.stop in (block.name, block.alias):
            cases[f"only {config.stop} ({block.flops_share:.0%} of the FLOPs)"] = up_to([block.name])
    return cases


def matmul_flops(device: str, variants: tuple[str, ...]) -> dict[str, float]:
    """Floating-point operations a second of a large square matrix product in every variant's precision."""
    size = 8192 if device.startswith("cuda") else 1024
    flops = {}
    for variant in variants:
        a, b = torch.randn(2, size, size, device=device, dtype=getattr(torch, variant.split("+")[0]))

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(10):
                a @ b
            if device.startswith("cuda"):
                torch.cuda.synchronize()

        flops[variant] = 10 * 2 * size**3 / min(record.interleave({"product": product}, 7)["product"])
    return flops


if __name__ == "__main__":
    main(tyro.cli(Extraction, description=__doc__))
