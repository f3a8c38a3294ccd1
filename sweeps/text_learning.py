"""Learns a text for a frozen Stable Diffusion, and compares it with the null text."""

import logging
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from ddae.backbones import Backbone, Block
from ddae.backbones.stable_diffusion import text_inputs
from ddae.datasets import Dataset
from ddae.features import check_timestep
from ddae.probe import standard_error
from ddae.text_embedding import Encoded, TextProbe, TextRecipe, TextTraining, encode_split
from ddae.units import duration, rounded
from storage.files import published
from storage.ledger import content_key
from sweeps.cli import check_writable
from sweeps.cluster.given import address
from sweeps.cluster.loop import update
from sweeps.cluster.train import FileCheckpoint, run_loop, training_bar
from sweeps.findings.folder import answered
from sweeps.flags import as_args, as_flags, check_no_offload, check_numbers
from sweeps.probing.source import choose_blocks, load_images, load_model
from sweeps.progress import bars

if TYPE_CHECKING:
    from sweeps.learn_text import LearnText

NULL, LEARNED = "null text", "learned text"

log = logging.getLogger("sweeps")


@dataclass(frozen=True)
class Setup:
    """A network and a dataset, and what is read from them."""

    backbone: Backbone
    dataset: Dataset
    block: Block
    timestep: int
    pooling: int
    recipe: TextRecipe
    folder: Path

    def training(self, name: str, num_train: int, encoded: Callable[[str], Encoded]) -> TextTraining:
        """That of LEARNED or of NULL, which differ in the text's learning rate alone."""
        recipe = self.recipe if name == LEARNED else replace(self.recipe, text_rate=0.0)
        probe = TextProbe(self.backbone, self.block, self.timestep, self.pooling, self.dataset.num_classes, recipe.seed)
        return TextTraining(probe, recipe, num_train, encoded)


def set_up(config: "LearnText") -> Setup:
    """Check the flags, and load network and data."""
    check_no_offload(config)
    rates = 1e-9, 1e3
    check_numbers(config, epochs=(1, 10**6), batch_size=(2, 10**6), learning_rate=rates, text_learning_rate=rates)
    if address():
        raise ValueError("a text is learned on this machine alone; unset RAY_ADDRESS")
    backbone = load_model(config)
    text_inputs(backbone)
    [block] = choose_blocks(backbone, [config.block])
    check_timestep(backbone, config.timestep)
    if not 1 <= config.pooling <= block.size:
        raise ValueError(f"pooling={config.pooling} does not suit block={block.name!r}; allowed: 1 to {block.size}")
    dataset = load_images(config, backbone)
    recipe = TextRecipe(
        config.epochs, config.batch_size, config.learning_rate, config.text_learning_rate, config.data_seed
    )
    decides = backbone.fingerprint, dataset.images.fingerprint, block.name, config.timestep, config.pooling
    folder = config.out / f"learn-text-{content_key(decides=decides, recipe=asdict(recipe))[:8]}"
    return Setup(backbone, dataset, block, config.timestep, config.pooling, recipe, folder)


def learn(setup: Setup) -> dict[str, TextTraining]:
    """Train with the learned text, then with the null text, or go on from the last epoch."""
    check_writable(setup.folder)
    if (setup.folder / "checkpoint.pt").exists():
        log.warning(f"{setup.folder / 'checkpoint.pt'} is of version 0.1; the text is learned anew, without it")
    with enough_memory(setup), bars() as progress:

        @cache
        def encoded(split: str) -> Encoded:
            track = partial(progress.track, task_id=progress.add_task(split, note=""))
            return encode_split(setup.backbone, setup.dataset, split, track)

        num_train, device = len(setup.dataset.splits["train"]), torch.device(setup.backbone.settings.device)
        trainings = {name: setup.training(name, num_train, encoded) for name in (LEARNED, NULL)}
        for name, training in trainings.items():
            run_loop(
                training,
                FileCheckpoint(setup.folder / f"{name.replace(' ', '-')}.pt"),
                device,
                every_steps=training.epoch_steps,
                on_progress=training_bar(progress, name, training.num_steps),
            )
    return trainings


def publish(config: "LearnText", setup: Setup, trainings: dict[str, TextTraining]) -> str:
    """Write the learned text; returns both val accuracies, and the command that uses it."""
    lines = []
    best = {name: max(training.val_accuracies) for name, training in trainings.items()}
    for name in (NULL, LEARNED):
        stderr = standard_error(best[name], len(setup.dataset.splits["val"]))
        epoch = trainings[name].val_accuracies.index(best[name]) + 1
        val = f"val accuracy {best[name]:.4f} ± {stderr:.4f}"
        lines.append(f"{name:<12}  {val}, best after epoch {epoch} of {setup.recipe.num_epochs}")
    if best[LEARNED] <= best[NULL]:
        lines.append("the null text is as good: there is nothing to gain from the learned one here")
    file = setup.folder / "text.safetensors"
    with answered("\n".join(lines)), published(file) as part:
        save_file({"text": trainings[LEARNED].best_text.cpu()}, part)
    given, default = as_flags(config), as_flags(type(config)())
    # another seed would have other val images than the text has
    others = [name for name in ("image_size", "data_seed", "data_root") if given[name] != default[name]]
    flags = ["--backbone", config.backbone, "--dataset", config.dataset, "--text-embedding", str(file)]
    flags += [arg for name in others for arg in as_args(name, given[name])]
    return "\n".join(
        [*lines, f"file          {file}", f"next          python sweeps/layer_noise.py {shlex.join(flags)}"]
    )


def estimate(setup: Setup) -> str:
    """What both trainings cost, by timing one step, after one to warm up."""
    dataset, backbone, recipe = setup.dataset, setup.backbone, setup.recipe
    rows = dataset.splits["train"][: recipe.batch_size]
    with enough_memory(setup):
        images = encode_split(backbone, replace(dataset, splits={"train": rows}), "train")
        training = setup.training(LEARNED, len(rows), lambda split: images)
        for _ in range(2):
            started = time.perf_counter()
            update(training, training.network, step=0)
    seconds = (time.perf_counter() - started) / len(rows)
    num_train, num_val = (len(dataset.splits[split]) for split in ("train", "val"))
    num_passes = recipe.num_epochs * (num_train + num_val)
    return (
        f"images          {num_train:,} train, {num_val:,} val, {dataset.num_classes} classes, each encoded once\n"
        f"forward passes  {num_passes:,} with the null text, {num_passes:,} with the learned one\n"
        f"learning        {rounded(1000 * seconds, 3)} ms an image, there and back, on {backbone.settings.device}\n"
        f"in all          at most {duration(2 * num_passes * seconds)}, and the encoding"
    )


@contextmanager
def enough_memory(setup: Setup) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"batch_size={setup.recipe.batch_size} images at once do not fit on the {setup.backbone.settings.device}; "
            "lower --batch-size or --image-size"
        ) from error
