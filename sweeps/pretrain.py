"""Pre-train a small DDPM or EDM on a dataset's train split: the network whose features a sweep then searches.

    python sweeps/pretrain.py                    # the one that ships with the package; 85 minutes on 2 cores
    python sweeps/pretrain.py --steps 500        # a smoke test
    python sweeps/pretrain.py --family edm

Writes a diffusers folder (fp16 weights of the exponential moving average, scheduler, model card), loss.png and
samples.png; with --snapshot-every N also such folders on the way, step-N, step-2N, ... Stop it at any time: the same
command goes on from the last checkpoint.
"""

import copy
import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sweeps import cli


@dataclass(frozen=True)
class Pretrain:
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
    data_root: str = "data"
    """Where the named datasets lie, or torchvision downloads them to."""


def main(config: Pretrain) -> None:
    import numpy as np
    import torch
    from diffusers.training_utils import EMAModel

    from ddae import pretrain
    from ddae.datasets import load_dataset
    from ddae.report import image_grid, loss_curve
    from sweeps.tuning.plan import choose_device
    from sweeps.tuning.progress import bars

    many = 1, 10**9
    cli.check_numbers(config, steps=many, batch_size=many, checkpoint_every=many, image_size=(8, 4096), seed=cli.SEEDS)
    cli.check_numbers(config, snapshot_every=(0, 10**9))
    cli.check_numbers(config, learning_rate=(1e-9, 1e3), ema_decay=(0, 1))
    if not config.channels:
        raise ValueError("--channels is empty; give one width a resolution, or leave the flag out for the default")
    device = choose_device(config.device)
    images = load_dataset(config.dataset, config.image_size, config.data_root).images
    first = images.read(np.linspace(0, images.num_train - 1, 64).astype(int))
    in_channels = 1 if (first == first[:, :1]).all() else 3

    torch.manual_seed(config.seed)
    shape = pretrain.UNetShape(first.shape[-1], in_channels, tuple(config.channels))
    family = pretrain.FAMILIES[config.family]
    unet, scheduler = family.make_unet(shape).to(device), family.make_scheduler()
    ema = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=0.0)

    # What decides the trained weights; a checkpoint of other settings is not gone on from.
    free = {"out", "device", "checkpoint_every", "snapshot_every", "data_root"}
    recipe = {k: v for k, v in asdict(config).items() if k not in free}
    recipe = json.loads(json.dumps(recipe))
    out = config.out or Path("out") / f"{config.family}-{Path(config.dataset).resolve().name}"
    cli.check_writable(out)
    checkpoint = out / "checkpoint.pt"
    losses: list[float] = []
    seconds = 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["recipe"] != recipe:
            raise ValueError(f"{checkpoint} was made with other settings ({state['recipe']}); give another --out")
        unet.load_state_dict(state["unet"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        losses, seconds = state["losses"], state["seconds"]

    def draw_batch(rng: torch.Generator) -> torch.Tensor:
        rows = torch.randint(images.num_train, (config.batch_size,), generator=rng).numpy()
        return images.read(rows)[:, :in_channels].to(device).float() / 127.5 - 1

    def loss_of(x0: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return family.loss(unet, x0, scheduler, rng)

    def save() -> None:
        part = checkpoint.with_suffix(".part")
        torch.save(
            {
                "recipe": recipe,
                "unet": unet.state_dict(),
                "ema": ema.state_dict(),
                "optimizer": optimizer.state_dict(),
                "losses": losses,
                "seconds": seconds,
            },
            part,
        )
        os.replace(part, checkpoint)

    def snapshot(folder: Path) -> None:
        averaged = copy.deepcopy(unet).eval()
        ema.copy_to(averaged.parameters())
        part = folder.with_suffix(".part")
        pretrain.save(averaged, scheduler, part)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)

    with bars() as progress:
        bar = progress.add_task("training", total=config.steps, completed=len(losses), note="")
        for step in range(len(losses), config.steps):
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * pretrain.warmup_cosine(step, config.steps, 500)
            autocast = torch.bfloat16 if config.autocast else None
            loss = pretrain.train_step(unet, optimizer, draw_batch, loss_of, step, config.seed, autocast)
            if loss != loss:
                raise ValueError(
                    f"the loss is not a number at step {step}; lower --learning-rate {config.learning_rate}"
                )
            losses.append(loss)
            ema.step(unet.parameters())
            seconds += time.perf_counter() - started
            progress.update(bar, advance=1, note=f"loss {sum(losses[-100:]) / len(losses[-100:]):.4f}")
            if (step + 1) % config.checkpoint_every == 0:
                save()
            if config.snapshot_every and (step + 1) % config.snapshot_every == 0:
                snapshot(out / f"step-{step + 1}")
    save()

    ema.copy_to(unet.parameters())
    unet.eval()
    loss_curve(losses, out / "loss.png")
    image_grid(pretrain.sample(unet, scheduler, 64, config.seed), out / "samples.png")
    pretrain.save(unet, scheduler, out / "model")
    final_loss = sum(losses[-500:]) / len(losses[-500:])
    num_params = sum(p.numel() for p in unet.parameters())
    (out / "model" / "README.md").write_text(
        MODEL_CARD.format(
            family=family.name,
            noise=family.noise,
            command=shlex.join(["python", "sweeps/pretrain.py", *sys.argv[1:]]),
            dataset=config.dataset,
            num_images=images.num_train,
            params=num_params / 1e6,
            steps=config.steps,
            batch_size=config.batch_size,
            loss=final_loss,
            minutes=seconds / 60,
            device=device,
            threads=torch.get_num_threads(),
            seed=config.seed,
        )
    )
    print(f"loss {final_loss:.4f} over the last 500 steps; {num_params / 1e6:.2f}M parameters")
    print(f"model    {out / 'model'}\npictures {out / 'samples.png'}, {out / 'loss.png'}")


MODEL_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# A small unconditional {family} on {dataset}

{params:.2f}M parameters, {noise}, fp16 weights of the exponential moving average.
Trained on the {num_images:,} images of the official train split, without labels; no test image was seen.

| command | `{command}` |
|---|---|
| seed | {seed} |
| steps x batch | {steps:,} x {batch_size} |
| loss, mean of the last 500 steps | {loss:.4f} |
| training time | {minutes:.0f} minutes on {device} ({threads} threads) |
"""

if __name__ == "__main__":
    cli.run(main, Pretrain, __doc__)
