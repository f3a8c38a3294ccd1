"""Samples from a network, keeps the images, and measures them beside real ones."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from ddae.backbones import Backbone, Settings, load_backbone
from ddae.datasets import Images, load_images
from ddae.generation.extractors import Extractor, load_extractor, resized
from ddae.generation.measures import LADDER, Measured, Rung, check_enough, frechet_distance, ladder, measure
from ddae.generation.sampling import Denoise, num_passes, sample, steps_of, usual_sampler
from ddae.memory import is_out_of_memory
from ddae.noise import VE
from ddae.report.figures import image_grid
from ddae.units import counted, duration, rounded
from storage.files import published
from sweeps.cli import aligned, check_writable
from sweeps.findings.folder import only_process
from sweeps.flags import SEEDS, check_numbers, command_of
from sweeps.probing.source import absolute, choose_device, reading_of
from sweeps.progress import bars

if TYPE_CHECKING:
    from sweeps.guide import Guide
    from sweeps.sample import Sample

JUDGE = Path(__file__).parents[1] / "benchmarks" / "networks" / "judge"
LEAST = 4
"""Images that precision and recall take, which look at third neighbours."""
GRID = 64
"""Images in grid.png."""

log = logging.getLogger("sweeps")


@dataclass(frozen=True)
class Setup:
    """A network, the real images, and the extractors that compare."""

    config: "Sample | Guide"
    backbone: Backbone
    sampler: str
    images: Images
    extractors: tuple[Extractor, ...]
    script = "sample"

    @property
    def num_steps(self) -> int:
        return len(steps_of(self.backbone.schedule, self.config.steps))

    @property
    def name(self) -> str:
        """The network, as the user gave it."""
        return self.config.backbone

    @property
    def denoise(self) -> Denoise | None:
        """What takes the network's place in the sampler, if anything does."""
        return None

    @property
    def folder(self) -> Path:
        path = Path(self.config.backbone).resolve()
        return self.config.out or Path("out") / f"samples-{path.parent.name if path.name == 'model' else path.name}"

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the images."""
        config = self.config
        real = self.images.fingerprint if config.start == "real" else ""
        return {
            "fingerprint": self.backbone.fingerprint, "sampler": self.sampler,
            "steps": self.num_steps, "seed": config.seed, "start": config.start, "real_images": real,
            "image_size": self.backbone.image_size, "precision": self.backbone.settings.precision,
        }  # fmt: skip

    @cached_property
    def rows(self) -> np.ndarray:
        """The order in which real images are taken: those of train, then those of test."""
        return self.order

    @property
    def order(self) -> np.ndarray:
        """All real images: those of train, then those of test."""
        num_train, rng = self.images.num_train, np.random.default_rng(0)
        return np.concatenate([rng.permutation(num_train), np.arange(num_train, len(self.images.labels))])

    def real(self, rows: np.ndarray) -> Tensor:
        """uint8 [n, 3, S, S], at the network's size."""
        return resized(self.images.read(rows).contiguous(), self.backbone.image_size)


def in_steps(backbone: Backbone, name: str, settings: Settings, steps: int) -> Backbone:
    """The network in an EDM schedule of so many steps; any other as it is. name, settings: by which it was loaded."""
    if not isinstance(backbone.schedule, VE) or steps == settings.num_steps:
        return backbone
    if steps < 2:
        raise ValueError("steps=1 is no schedule of EDM's noise; give 2 or more, as 18")
    return load_backbone(name, replace(settings, num_steps=steps))


def set_up(config: "Sample") -> Setup:
    """Check the flags, and load what is needed. Raises ValueError, or OSError where --out cannot be written."""
    many = 1, 10**9
    check_numbers(config, num_samples=(2, 10**9), steps=many, batch_size=many, seed=SEEDS, image_size=(0, 4096))
    check_numbers(config, num_resamples=(2, 10**6))
    if (Path(config.backbone) / "winner.json").exists():
        raise ValueError(f"{config.backbone} is a classifier, which samples nothing; give it to --extractor")
    weights = absolute(config.weights) if config.weights else ""
    settings = Settings(choose_device(config.device), config.precision, image_size=config.image_size, weights=weights)
    backbone = load_backbone(config.backbone, settings)
    backbone = in_steps(backbone, config.backbone, settings, config.steps)
    if backbone.denoised is not None and (taken := len(steps_of(backbone.schedule, config.steps))) < config.steps:
        log.warning(f"{config.backbone} knows {taken} noisy timesteps, fewer than steps={config.steps}; all are taken")
    sampler = usual_sampler(backbone.schedule) if config.sampler == "auto" else config.sampler
    zeros = torch.zeros(1, *backbone.encoder.shape, device=settings.device)
    with torch.no_grad():
        backbone.denoise(zeros, backbone.schedule.timesteps[-1])  # refused here, before anything else is loaded
    images = load_images(config.dataset, backbone.image_size, config.data_root, reading_of(config))
    names = config.extractor
    if not names and config.dataset.startswith("fashion-mnist") and JUDGE.is_dir():
        names = (str(JUDGE),)
    setup = Setup(config, backbone, sampler, images, tuple(load_extractor(name, settings.device) for name in names))
    check_images(setup)
    if not config.dry_run:
        check_writable(setup.folder)
    return setup


def check_images(setup: Setup) -> None:
    """Raises ValueError where there are too few images, of either kind, before any is sampled."""
    config, has = setup.config, len(setup.rows)
    if setup.extractors and config.num_samples < LEAST:
        raise ValueError(f"num_samples={config.num_samples} are too few to measure; give {LEAST} or more")
    sets = (config.start == "real") + 2 * bool(setup.extractors and config.against == "as-many")
    if has < (wanted := sets * config.num_samples):
        uses = ["to compare with, and as many others to compare these with"] * bool(setup.extractors)
        uses += ["to start from"] * (config.start == "real")
        raise ValueError(
            f"num_samples={config.num_samples:,} want as many real images {', and as many '.join(uses)}: {wanted:,}, "
            f"and {config.dataset} has {has:,}; give --num-samples {has // sets}, or another --dataset"
        )
    for extractor in setup.extractors:
        width = extractor(setup.real(setup.rows[:1])).shape[1]
        if not config.force:
            check_enough(config.num_samples, width)
    if not setup.extractors:
        log.warning("no --extractor is given, so that nothing is measured")
    first = setup.real(setup.rows[:GRID])
    if setup.extractors and setup.backbone.encoder.shape[0] == 1 and not (first == first[:, :1]).all():
        log.warning(f"{setup.name} samples grey images, and {config.dataset} has colours, which count against it")


def estimate(setup: Setup) -> str:
    """Passes of the network, and their time as one batch takes it."""
    config, backbone = setup.config, setup.backbone
    passes = num_passes(setup.sampler, setup.num_steps)
    total = seconds_per_pass(setup) * passes * config.num_samples
    return (
        f"{counted(config.num_samples, 'image', 'images')} by {setup.sampler}, {counted(passes, 'pass', 'passes')} "
        f"each: {config.num_samples * passes:,} passes of {backbone.flops / 1e9:.2g} GFLOP, about {duration(total)} on "
        f"{backbone.settings.device}; measures come on top"
    )


def seconds_per_pass(setup: Setup) -> float:
    """For one image, in a batch, as it is sampled."""
    backbone, size = setup.backbone, min(setup.config.batch_size, setup.config.num_samples)
    x = torch.randn(size, *backbone.encoder.shape, device=backbone.settings.device)
    denoise = setup.denoise or (lambda x, timestep, numbers: backbone.denoise(x, timestep))
    timestep = steps_of(backbone.schedule, 3)[-1].timestep
    seconds = 0.0
    for _ in range(2):  # the first is slower
        started = time.perf_counter()
        with torch.no_grad(), enough_memory(setup):
            denoise(x, timestep, np.arange(size)).sum().item()
        seconds = time.perf_counter() - started
    return seconds / size


@contextmanager
def enough_memory(setup: Setup) -> Iterator[None]:
    """Raises ValueError where a batch does not fit."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"batch_size={setup.config.batch_size} images at once do not fit on the {setup.backbone.settings.device}; "
            "lower --batch-size"
        ) from error


def run(setup: Setup) -> str:
    """Sample, keep and measure; returns what the command prints."""
    with only_process(setup.folder):
        everything = sampled(setup)
        keep(setup, everything)
        images = everything[: setup.config.num_samples]
        how = f"{setup.sampler}, {counted(setup.num_steps, 'step', 'steps')}, seed {setup.config.seed}"
        lines = [f"{setup.config.backbone}: {len(images):,} images by {how}, in {setup.folder}"]
        found = measured_before(setup.folder, len(images))
        for extractor in setup.extractors:
            said, record = measured_under(setup, extractor, images)
            lines += ["", *said]
            found[extractor.name] = {
                "fingerprint": extractor.fingerprint, "num_images": len(images), "dataset": setup.config.dataset,
                "dataset_fingerprint": setup.images.fingerprint, **record,
            }  # fmt: skip
        write_json(setup.folder / "measures.json", found)
    return "\n".join(lines)


def measured_under(setup: Setup, extractor: Extractor, images: Tensor) -> tuple[list[str], dict[str, Any]]:
    """What is printed of samples under an extractor, and what is kept of it."""
    if setup.config.against == "train":
        distance, number = to_train(setup, extractor, images), setup.images.num_train
        shown = f"{extractor.distance} {rounded(distance, 3)} under {extractor.name}"
        said = {"name": extractor.distance, "value": distance, "num_real": number}
        return [f"{shown}, {len(images):,} images against all {number:,} of train"], {"to_train": said}
    measured, rungs, width = compare(setup, extractor, images)
    kept = {"measures": [asdict(each) for each in measured], "ladder": [asdict(rung) for rung in rungs]}
    return table(setup, extractor, width, measured, rungs), {"features": width, **kept}


def measured_before(folder: Path, num_images: int) -> dict[str, Any]:
    """What other extractors have measured of as many images."""
    file = folder / "measures.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    return {name: each for name, each in kept.items() if each["num_images"] == num_images}


def sampled(setup: Setup) -> Tensor:
    """uint8 [K, 3, S, S], as many as are asked for or more. What a command of the same recipe has kept is not sampled
    again, and each batch is kept at once. Raises ValueError where the folder holds images of another recipe."""
    config, folder, backbone = setup.config, setup.folder, setup.backbone
    parts = folder / "parts"
    done = len(kept_images(setup))
    parts.mkdir(exist_ok=True)
    write_json(folder / "manifest.json", {"recipe": setup.recipe, "num_samples": 0})
    with bars() as progress:
        bar = progress.add_task("sampling", total=config.num_samples, note="")
        progress.reset(bar, completed=min(done, config.num_samples))
        for first in range(done, config.num_samples, config.batch_size):
            indices = np.arange(first, min(first + config.batch_size, config.num_samples))
            x0 = backbone.encode(setup.real(setup.rows[-1 - indices])) if config.start == "real" else None
            with enough_memory(setup):
                latents = sample(backbone, indices, config.seed, config.steps, setup.sampler, setup.denoise, x0)
            if not latents.isfinite().all():
                raise ValueError(f"{setup.name} samples what is no number; give more --steps, or other weights")
            batch = backbone.encoder.decode(latents).cpu().contiguous()  # type: ignore[attr-defined]
            with published(parts / f"{first:08}.npy") as part, part.open("wb") as file:
                np.save(file, batch.numpy())
            progress.advance(bar, len(batch))
    return kept_images(setup)


def kept_images(setup: Setup) -> Tensor:
    """uint8 [K, 3, S, S], the first images, from the file of a finished command and the parts of a stopped one."""
    folder, size = setup.folder, setup.backbone.image_size
    kept, done = [torch.empty(0, 3, size, size, dtype=torch.uint8)], 0
    if not (manifest := folder / "manifest.json").exists():
        return kept[0]
    try:
        made = json.loads(manifest.read_text())["recipe"]
        if (file := folder / "samples.npz").exists():
            kept.append(torch.from_numpy(np.load(file)["images"]).permute(0, 3, 1, 2))
            done = len(kept[-1])
        while (part := folder / "parts" / f"{done:08}.npy").exists():
            kept.append(torch.from_numpy(np.load(part)))
            done += len(kept[-1])
        changed = [name for name, value in setup.recipe.items() if made.get(name) != value]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise ValueError(f"the samples in {folder} are damaged ({error}); delete it, or give another --out") from error
    if changed:
        raise ValueError(f"{folder} holds samples of other {' and '.join(changed)}; give another --out, or delete it")
    return torch.cat(kept)


def keep(setup: Setup, images: Tensor) -> None:
    """Write samples.npz with its manifest, the grid, and PNGs where they are wanted; the parts go."""
    folder, config = setup.folder, setup.config
    with published(folder / "samples.npz") as part, part.open("wb") as file:
        np.savez(file, images=images.permute(0, 2, 3, 1).numpy())
    shutil.rmtree(folder / "parts", ignore_errors=True)
    packages = {name: version(name) for name in ("torch", "diffusers", "numpy")}
    command = command_of(config, setup.script)
    made = {"backbone": setup.name, "num_samples": len(images), "command": command, "packages": packages}
    write_json(folder / "manifest.json", {"recipe": setup.recipe, **made})
    image_grid(images[:GRID].float() / 255, folder / "grid.png")
    if config.keep == "png":
        (folder / "png").mkdir(exist_ok=True)
        for i, image in enumerate(images):
            PIL.Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "png" / f"{i:06}.png")


def write_json(path: Path, values: dict[str, Any]) -> None:
    with published(path) as part:
        part.write_text(json.dumps(values, indent=1) + "\n")


def to_train(setup: Setup, extractor: Extractor, images: Tensor) -> float:
    """The Fréchet distance of samples to all training images, as papers measure it."""
    num_train, at_once = setup.images.num_train, 1024
    with counting(extractor.name, len(images) + num_train) as step:
        generated = extractor(images, step)
        spans = [np.arange(start, min(start + at_once, num_train)) for start in range(0, num_train, at_once)]
        real = torch.cat([extractor(setup.real(rows), step) for rows in spans])
    return frechet_distance(generated, real)


def compare(
    setup: Setup, extractor: Extractor, images: Tensor, with_damage: bool = True
) -> tuple[list[Measured], list[Rung], int]:
    """The measures under an extractor, whether it sees known damage, and how many features it has."""
    config, number = setup.config, len(images)
    real, others = (setup.rows[start : start + number] for start in (0, number))
    with counting(extractor.name, 3 * number + 4 * config.num_resamples) as step:
        read = partial(extractor, on_batch=step)
        other_images = setup.real(others)
        generated, reference, floor = (read(each) for each in (images, setup.real(real), other_images))
        resamples, moved = config.num_resamples, partial(step, 1)
        measured = measure(generated, reference, floor, extractor.distance, resamples, on_step=moved)
    if not with_damage:
        return measured, [], generated.shape[1]
    with counting("known damage", len(LADDER) * number) as step:
        read = partial(extractor, on_batch=step)
        labels, first = setup.images.labels[others], measured[0]
        rungs = ladder(read, reference, other_images, labels, first.floor_interval[1])
    return measured, rungs, generated.shape[1]


@contextmanager
def counting(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar; what is yielded moves it."""
    with bars() as progress:
        bar = progress.add_task(name, total=total, note="")
        yield lambda number: progress.advance(bar, number)


def table(
    setup: Setup, extractor: Extractor, width: int, measured: Sequence[Measured], rungs: Sequence[Rung]
) -> list[str]:
    number, name = setup.config.num_samples, setup.config.dataset
    from_test = max(0, 2 * number - setup.images.num_train)
    of_test = f", {from_test:,} of them from test" if from_test else ""
    head = f"under {extractor.name}, {width:,} features; {number:,} images of each kind of {name}{of_test}"
    rows = [["", "samples", "95 %", "real images", "95 %"]]
    for each in measured:
        pairs = ((each.value, each.interval), (each.floor, each.floor_interval))
        texts = ((rounded(value, 3), f"{rounded(low, 3)} to {rounded(high, 3)}") for value, (low, high) in pairs)
        rows.append([each.name, *(text for pair in texts for text in pair)])
    failed = [rung.name for rung in rungs if not rung.passed]
    verdict = f"it does not see: {', '.join(failed)}; do not trust it there" if failed else "it sees all of it"
    if number < 2 * width:
        head += f"; too few for {width:,} features, so that {extractor.distance} is mostly the error of their number"
    damage = [[rung.name, rounded(rung.distance, 3), "pass" if rung.passed else "FAIL"] for rung in rungs]
    return [
        head, *aligned(rows), f"{extractor.distance} of damaged real images", *aligned(damage), verdict,
    ]  # fmt: skip
