"""Learn a text for a frozen Stable Diffusion, in place of the null text: one embedding for all images of a dataset.

    python sweeps/learn_text.py --backbone ./stable-diffusion-v1-5 --dataset ./my-images --dry-run    # what it costs
    python sweeps/learn_text.py --backbone ./stable-diffusion-v1-5 --dataset ./my-images --image-size 256

A linear head on one block's features is trained together with the text, by back-propagation through the network, then
another with the null text (Diffusion Models Beat GANs on Image Classification, Table 4: 65.18 and 64.67 % on ImageNet).
In both, an epoch passes every train and val image once. Learning passes the train images back as well: as much work
again, and with b18 of Stable Diffusion 1.5 a memory of 1.2 GB an image of the batch at 512 pixels, 0.2 GB at 256.
Prints both val accuracies and writes text.safetensors, that of the best epoch on val: it has seen the labels of train
and val, none of test. Stop it at any time: the same command goes on from the last epoch.
"""

import os
import shlex
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tyro

from sweeps import cli

if TYPE_CHECKING:
    from ddae.backbones import Backbone
    from ddae.datasets import Dataset
    from ddae.text_embedding import TextTraining

Value = TypeVar("Value")
Unused = tyro.conf.Suppress[tyro.conf.Fixed[Value]]
NULL, LEARNED = "null text", "learned text"


@dataclass(frozen=True)
class LearnText(cli.ModelAndData):
    block: str = "b18"
    """The block whose features the head reads, by its own name or the paper's."""
    timestep: int = 150
    pooling: int = 1
    """Side of the grid to which its map is averaged."""
    epochs: int = 15
    batch_size: int = 16
    learning_rate: float = 1e-3
    """Peak of the head's; Adam, cosine to zero."""
    text_learning_rate: float = 1e-3
    """Peak of the text's."""
    blocks: Unused[tuple[str, ...]] = ()
    timesteps: Unused[tuple[int, ...]] = ()
    store: Unused[str] = ""
    num_steps: Unused[int] = 18
    text_embedding: Unused[str] = ""


def main(config: LearnText) -> None:
    import torch
    from safetensors.torch import save_file

    from ddae.datasets import load_dataset
    from ddae.features import check_timestep
    from ddae.probe import standard_error
    from ddae.text_embedding import TextProbe, TextRecipe, TextTraining, text_inputs
    from storage.feature_store import published
    from storage.results import content_key
    from sweeps.tuning.plan import VAL_FRACTION, choose_blocks, load_model

    rates = 1e-9, 1e3
    cli.check_numbers(config, epochs=(1, 10**6), batch_size=(2, 10**6), learning_rate=rates, text_learning_rate=rates)
    if "RAY_ADDRESS" in os.environ:
        raise ValueError("a text is learned on this machine alone; unset RAY_ADDRESS")
    backbone = load_model(config)
    text_inputs(backbone)
    [block] = choose_blocks(backbone, [config.block])
    check_timestep(backbone, config.timestep)
    if not 1 <= config.pooling <= block.size:
        raise ValueError(f"pooling={config.pooling} does not suit block={block.name!r}; allowed: 1 to {block.size}")
    dataset = load_dataset(config.dataset, backbone.image_size, config.data_root, config.data_seed, VAL_FRACTION)
    rates = config.learning_rate, config.text_learning_rate
    recipe = TextRecipe(config.epochs, config.batch_size, *rates, config.data_seed)
    place = block, config.timestep, config.pooling, dataset.num_classes
    trainings = {
        name: TextTraining(TextProbe(backbone, *place, recipe.seed), each)
        for name, each in ((LEARNED, recipe), (NULL, replace(recipe, text_rate=0.0)))
    }
    decides = backbone.fingerprint, dataset.images.fingerprint, block.name, config.timestep, config.pooling
    folder = config.out / f"learn-text-{content_key(decides=decides, recipe=asdict(recipe))[:8]}"
    try:
        if config.dry_run:
            print(estimate(trainings[LEARNED], backbone, dataset))
            return
        train(trainings, backbone, dataset, folder / "checkpoint.pt")
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"batch_size={config.batch_size} images at once do not fit on the {backbone.settings.device}; "
            "lower --batch-size or --image-size"
        ) from error

    best = {name: max(training.val_accuracies) for name, training in trainings.items()}
    for name in (NULL, LEARNED):
        stderr = standard_error(best[name], len(dataset.splits["val"]))
        epoch = trainings[name].val_accuracies.index(best[name]) + 1
        print(f"{name:<12}  val accuracy {best[name]:.4f} ± {stderr:.4f}, best after epoch {epoch} of {config.epochs}")
    if best[LEARNED] <= best[NULL]:
        print("the null text is as good: there is nothing to gain from the learned one here")
    file = folder / "text.safetensors"
    with published(file) as part:
        save_file({"text": trainings[LEARNED].best_text.cpu()}, part)
    flags = ["--backbone", config.backbone, "--dataset", config.dataset, "--text-embedding", str(file)]
    for name in ("image_size", "data_seed", "data_root"):  # another seed would have other val images than the text has
        if getattr(config, name) != getattr(LearnText, name):
            flags += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    print(f"file          {file}\nnext          python sweeps/layer_noise.py {shlex.join(flags)}")


def train(trainings: dict[str, "TextTraining"], backbone: "Backbone", dataset: "Dataset", checkpoint: Path) -> None:
    """Goes on from the checkpoint, which is written after every epoch."""
    import torch

    from ddae.text_embedding import encode_split
    from storage.feature_store import published
    from sweeps.tuning.progress import bars

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        for name, state in torch.load(checkpoint, map_location=backbone.settings.device, weights_only=True).items():
            trainings[name].load_state(state)
    if all(training.finished for training in trainings.values()):
        return
    with bars() as progress:
        images, val = (
            encode_split(backbone, dataset, split, partial(progress.track, task_id=progress.add_task(split, note="")))
            for split in ("train", "val")
        )
        for name, training in trainings.items():
            num_steps = training.num_steps(images)
            total, completed = num_steps * training.recipe.num_epochs, num_steps * training.epoch
            bar = progress.add_task(name, total=total, completed=completed, note="")
            while not training.finished:
                for loss in training.train_epoch(images, val):
                    progress.update(bar, advance=1, note=f"loss {loss:.4f}")
                with published(checkpoint) as part:
                    torch.save({name: training.state() for name, training in trainings.items()}, part)


def estimate(training: "TextTraining", backbone: "Backbone", dataset: "Dataset") -> str:
    """What both trainings cost, by timing one step, after one to warm up."""
    import numpy as np

    from ddae.text_embedding import encode_split

    rows = dataset.splits["train"][: training.recipe.batch_size]
    images = encode_split(backbone, replace(dataset, splits={"train": rows}), "train")
    for _ in range(2):
        started = time.perf_counter()
        training.step(images, np.arange(len(rows)), 1.0)
    seconds = (time.perf_counter() - started) / len(rows)
    num_train, num_val = (len(dataset.splits[split]) for split in ("train", "val"))
    num_passes = training.recipe.num_epochs * (num_train + num_val)
    return (
        f"images          {num_train:,} train, {num_val:,} val, {dataset.num_classes} classes, each encoded once\n"
        f"forward passes  {num_passes:,} with the null text, {num_passes:,} with the learned one\n"
        f"learning        {1000 * seconds:.3g} ms an image, there and back, on {backbone.settings.device}\n"
        f"in all          at most {2 * num_passes * seconds / 60:.3g} minutes, and the encoding"
    )


if __name__ == "__main__":
    cli.run(main, LearnText, __doc__)
