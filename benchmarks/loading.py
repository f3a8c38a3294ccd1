"""Memory that a pipeline takes to load, against the bytes of its network's file.

    python benchmarks/loading.py            # 2.6 GB of FLUX.1's layers in bfloat16, random: a minute

The network is 2 double and 4 single blocks of FLUX.1-dev at full width, with a small VAE and no text encoders, made by
another process. The number is the peak of resident memory, less what Python and torch had before.
"""

import multiprocessing
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import record
import torch
import tyro


@dataclass(frozen=True)
class Loading:
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    double_blocks: int = 2
    single_blocks: int = 4


def main(config: Loading) -> None:
    with tempfile.TemporaryDirectory() as folder:
        making = multiprocessing.get_context("spawn").Process(target=make, args=(Path(folder), config))
        making.start()
        making.join()
        size = sum(file.stat().st_size for file in Path(folder, "transformer").glob("*.safetensors"))
        peak, seconds = load(folder, config.precision)
    results = {"file_gb": size / 1e9, "peak_gb": peak / 1e9, "peak_over_file": peak / size, "seconds": seconds}
    print(results)
    record.write(f"loading_{config.precision}", results)


def make(folder: Path, config: Loading) -> None:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.set_default_dtype(torch.bfloat16)
    network = FluxTransformer2DModel(
        num_layers=config.double_blocks, num_single_layers=config.single_blocks, guidance_embeds=True
    )
    torch.set_default_dtype(torch.float32)
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        shift_factor=0.1159,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    FluxPipeline(scheduler, vae, None, None, None, None, network).save_pretrained(folder)


def load(folder: str, precision: str) -> tuple[int, float]:
    """(bytes of resident memory that loading takes at most, seconds), in this process."""
    import diffusers  # noqa: F401  # what is imported is no part of the model
    import transformers  # noqa: F401

    from ddae.backbones import Settings, load_backbone

    before, peak, ended = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, resident())

    threading.Thread(target=watch, daemon=True).start()
    started = time.perf_counter()
    load_backbone(folder, Settings(image_size=256, precision=precision))
    seconds = time.perf_counter() - started
    ended.set()
    return peak - before, seconds


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    main(tyro.cli(Loading, description=__doc__))
