"""Samples images of chosen classes at several scales of guidance, keeps them, and has them judged."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddae.backbones import Backbone, load_backbone
from ddae.datasets import load_images
from ddae.generation.extractors import load_extractor, resized
from ddae.generation.measures import Measured, Rung, wilson
from ddae.generation.sampling import Denoise, num_passes, steps_of, usual_sampler
from ddae.guidance import Guide
from ddae.noisy_classifier import HEAD, NoisyClassifier
from ddae.report.figures import class_grid
from ddae.units import counted, duration, rounded
from ddae.winner import Winner, load, sha256
from sweeps.cli import aligned, check_writable
from sweeps.findings.folder import only_process
from sweeps.flags import SEEDS, check_numbers
from sweeps.probing.source import choose_device, reading_of
from sweeps.sampling import Setup, check_images, compare, in_steps, keep, sampled, seconds_per_pass, write_json

if TYPE_CHECKING:
    from sweeps import guide

SHOWN = 8
"""Images of a class and a scale in grid.png, at most; fewer where there are many scales."""
DRAWN = 64
"""Their side in pixels, at most."""
LARGEST = 1000
"""The largest scale that is taken."""
JUDGED = 2000
"""Real images at most that the judge is asked about."""

log = logging.getLogger("sweeps")


@dataclass(frozen=True)
class Guided(Setup):
    """One scale of guidance."""

    config: "guide.Guide"
    classifier: NoisyClassifier
    head: str
    """Fingerprint of the classifier's head."""
    classes: tuple[str, ...]
    judge: Winner | None
    scale: float = 0
    script = "guide"

    @property
    def name(self) -> str:
        return self.classifier.backbone

    @cached_property
    def denoise(self) -> Denoise:
        return Guide.towards(self.classifier, self.backbone, self.classes, self.scale)

    @property
    def out(self) -> Path:
        return self.config.out or Path("out") / f"guided-{Path(self.config.classifier).resolve().name}"

    @property
    def folder(self) -> Path:
        return self.out / f"scale-{self.scale:g}"

    @property
    def recipe(self) -> dict[str, Any]:
        head = {"block": self.classifier.block, "pooling": self.classifier.pooling, "head": self.head}
        return {**super().recipe, **head, "scale": self.scale, "classes": list(self.classes)}

    @property
    def numbers(self) -> np.ndarray:
        """Which of the dataset's classes the wanted ones are."""
        return np.array([self.images.classes.index(name) for name in self.classes])

    @cached_property
    def rows(self) -> np.ndarray:
        """The order in which real images are taken: as many of each class, in turn; of train before those of test."""
        order, labels = self.order, self.images.labels
        of_each = [order[labels[order] == number] for number in self.numbers]
        return np.stack([rows[: min(map(len, of_each))] for rows in of_each], axis=1).ravel()

    def at(self, scale: float) -> "Guided":
        return replace(self, scale=scale)


def set_up(config: "guide.Guide") -> Guided:
    """Check the flags, and load what is needed. Raises ValueError, or OSError where --out cannot be written."""
    many = 1, 10**9
    check_numbers(config, num_samples=(2, 10**9), steps=many, batch_size=many, seed=SEEDS, num_resamples=(2, 10**6))
    if not config.classifier:
        raise ValueError("--classifier is missing; give the folder that sweeps/noisy_classifier.py has made")
    if not config.scale:
        raise ValueError("--scale is empty; give some numbers, such as 0 1 5")
    if wrong := [scale for scale in config.scale if not abs(scale) <= LARGEST]:
        raise ValueError(f"scale={wrong[0]:g} must lie between -{LARGEST:,} and {LARGEST:,}; give some such as 0 1 5")
    if len({f"{scale:g}" for scale in config.scale}) < len(set(config.scale)):
        raise ValueError(f"scale={' '.join(map(str, config.scale))} are too near each other; six digits count")
    device = choose_device(config.device)
    classifier, backbone = opened(config, device)
    sampler = usual_sampler(backbone.schedule) if config.sampler == "auto" else config.sampler
    classes = tuple(dict.fromkeys(config.classes or classifier.class_names))
    Guide.towards(classifier, backbone, classes, 1)  # refused here, before anything else is loaded
    if config.num_samples < len(classes):
        raise ValueError(f"num_samples={config.num_samples} are fewer than the {len(classes)} classes; give more")
    config = replace(config, dataset=config.dataset or classifier.dataset)
    images = load_images(config.dataset, backbone.image_size, config.data_root, reading_of(config))
    if images.classes != classifier.class_names:
        raise ValueError(
            f"the classifier was trained on {classifier.dataset}, whose classes are "
            f"{', '.join(classifier.class_names)}, and {config.dataset} has {', '.join(images.classes)}; give "
            "--dataset with the same classes"
        )
    extractors = tuple(load_extractor(name, device) for name in config.extractor)
    judge = load_judge(config.judge, classes, backbone, device) if config.judge else None
    head = sha256(Path(config.classifier) / HEAD)
    setup = Guided(config, backbone, sampler, images, extractors, classifier, head, classes, judge)
    if extractors:
        check_images(setup)
    elif not judge:
        log.warning("neither --judge nor --extractor is given, so that nothing is measured")
    if not config.dry_run:
        check_writable(*(setup.at(scale).folder for scale in config.scale))
    return setup


def opened(config: "guide.Guide", device: str) -> tuple[NoisyClassifier, Backbone]:
    """The classifier, and its network in a schedule of so many steps. Raises ValueError where these do not suit."""
    classifier = NoisyClassifier.load(config.classifier, device)
    if config.backbone:
        classifier.check(load_backbone(config.backbone, classifier.settings))
    backbone = in_steps(classifier.open(), classifier.backbone, classifier.settings, config.steps)
    classifier = replace(classifier, fingerprint=backbone.fingerprint)  # of the same files, as open() has checked
    has = len(steps_of(backbone.schedule, config.steps))
    if has < config.steps:
        raise ValueError(
            f"steps={config.steps}: {classifier.backbone} knows {counted(has, 'noisy timestep', 'noisy timesteps')}; "
            f"give --steps {has} or fewer"
        )
    return classifier, backbone


def load_judge(folder: str, classes: Sequence[str], backbone: Backbone, device: str) -> Winner:
    """Raises ValueError for one that does not know the classes."""
    judge = load(Path(folder), device)
    if unknown := [name for name in classes if name not in judge.class_names_]:
        raise ValueError(
            f"judge={folder!r} does not know the class {unknown[0]!r}, but {', '.join(judge.class_names_)}; give one "
            "that was trained on the same classes"
        )
    if judge._network().fingerprint == backbone.fingerprint:
        log.warning(f"the judge {folder} reads features of the network that is guided, and is not independent of it")
    return judge


def estimate(setup: Guided) -> str:
    """Passes of the network for each scale, and their time as one batch takes it."""
    config, passes = setup.config, num_passes(setup.sampler, setup.num_steps)
    how = f"{setup.sampler}, {counted(passes, 'pass', 'passes')} each"
    rows, total = [["scale", "images", "forward passes", "time"]], 0.0
    for scale in config.scale:
        each = setup.at(scale)
        assert isinstance(each.denoise, Guide)
        seconds = seconds_per_pass(each) * passes * config.num_samples
        total += seconds
        work = config.num_samples * passes * (each.denoise.cost if scale else 1)
        rows.append([f"{scale:g}", f"{config.num_samples:,}", f"{work:,.0f}", f"about {duration(seconds)}"])
    return "\n".join(
        [
            f"{setup.name}: {', '.join(setup.classes)} by {how} of {setup.backbone.flops / 1e9:.2g} GFLOP",
            *aligned(rows),
            f"in all about {duration(total)} on {setup.backbone.settings.device}; measures come on top",
        ]
    )


@dataclass(frozen=True)
class Verdict:
    """What a judge says of images that have, or are to have, known classes."""

    accuracy: float
    interval: tuple[float, float]
    """Its interval of 95 %."""
    confidence: float
    """Mean of the highest probability."""
    by_class: dict[str, float]
    num_images: int


def judged(judge: Winner, images: Tensor, classes: Sequence[str], labels: np.ndarray) -> Verdict:
    """images: uint8 [N, 3, H, W]; labels: int [N], indices into classes."""
    probabilities = judge.predict_proba(images)
    columns = np.array([judge.class_names_.index(name) for name in classes])
    right = probabilities.argmax(1) == columns[labels]
    by_class = {name: float(right[labels == i].mean()) for i, name in enumerate(classes) if (labels == i).any()}
    share = float(right.mean())
    return Verdict(share, wilson(share, len(right)), float(probabilities.max(1).mean()), by_class, len(right))


def judged_real(setup: Guided) -> Verdict | None:
    """What the judge says of real images of the classes, from test, which it has not been trained on."""
    assert setup.judge
    num_train, labels = setup.images.num_train, setup.images.labels
    rows = num_train + np.flatnonzero(np.isin(labels[num_train:], setup.numbers))
    rows = np.random.default_rng(0).permutation(rows)[:JUDGED]
    if not len(rows):
        return None
    labels = (labels[rows][:, None] == setup.numbers).argmax(1)
    return judged(setup.judge, setup.real(rows), setup.classes, labels)


def run(setup: Guided) -> str:
    """Sample at every scale, keep, draw and measure; returns what the command prints."""
    config, found = setup.config, known(setup)
    with only_process(setup.out):
        images: dict[float, Tensor] = {}
        for scale in dict.fromkeys(config.scale):
            everything = sampled(setup.at(scale))
            keep(setup.at(scale), everything)
            images[scale] = everything[: config.num_samples]
        draw(setup, images)
        how = f"{setup.sampler}, {counted(setup.num_steps, 'step', 'steps')}, seed {config.seed}"
        lines = [f"{setup.name}: {config.num_samples:,} images of {', '.join(setup.classes)} at each scale by {how}"]
        if setup.judge:
            verdicts = {
                scale: judged(setup.judge, each, setup.classes, labels_of(setup)) for scale, each in images.items()
            }
            real = judged_real(setup)
            lines += ["", *judge_table(setup, verdicts, real)]
            said = {f"{scale:g}": asdict(verdict) for scale, verdict in verdicts.items()}
            found.setdefault("judge", {}).update(said, real=real and asdict(real), folder=config.judge)
        for extractor in setup.extractors:
            measured: dict[float, list[Measured]] = {}
            rungs: list[Rung] = []
            for scale, each in images.items():
                measured[scale], seen, width = compare(setup, extractor, each, with_damage=not measured)
                rungs = seen or rungs
            lines += ["", f"under {extractor.name}, {width:,} features; {config.num_samples:,} images of each kind"]
            lines += [*measure_table(measured), "on damaged real images it " + sight(rungs)]
            seen_by = {f"{s:g}": [asdict(each) for each in measured[s]] for s in measured}
            found.setdefault(extractor.name, {}).update(seen_by)
        write_json(setup.out / "guided.json", found)
    return "\n".join([*lines, "", f"grid.png, guided.json and the samples are in {setup.out}"])


def known(setup: Guided) -> dict[str, Any]:
    """What guided.json says of other scales, where it is of as many images, and of the same judge if one is given."""
    of: dict[str, Any] = {"num_samples": setup.config.num_samples}
    try:
        found: dict[str, Any] = json.loads((setup.out / "guided.json").read_text())
        found = found if found["num_samples"] == of["num_samples"] else of
        other = setup.judge and found.get("judge", {}).get("folder") != setup.config.judge
        return {name: value for name, value in found.items() if name != "judge"} if other else found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return of


def labels_of(setup: Guided) -> np.ndarray:
    """int [N], of each sample, among the wanted classes."""
    return np.arange(setup.config.num_samples) % len(setup.classes)


def draw(setup: Guided, images: dict[float, Tensor]) -> None:
    """Write grid.png: a row a class, and in it the same noises under each scale."""
    number = max(1, min(SHOWN, 24 // len(images), setup.config.num_samples // len(setup.classes)))
    first, size = number * len(setup.classes), min(DRAWN, setup.backbone.image_size)
    shown = torch.stack([resized(each[:first], size) for each in images.values()])
    shown = shown.unflatten(1, (number, len(setup.classes))).transpose(1, 2)
    class_grid(shown, setup.classes, [f"scale {scale:g}" for scale in images], setup.out / "grid.png")


def judge_table(setup: Guided, verdicts: dict[float, Verdict], real: Verdict | None) -> list[str]:
    rows = [["scale", "of their class", "95 %", "confidence", "weakest class"]]
    every = {f"{scale:g}": verdict for scale, verdict in verdicts.items()} | ({"real images": real} if real else {})
    for name, each in every.items():
        low, high = each.interval
        worst = min(each.by_class, key=lambda name: each.by_class[name])
        weakest = f"{worst}, {100 * each.by_class[worst]:.0f} %"
        share = f"{100 * each.accuracy:.1f} %"
        rows.append([name, share, f"{100 * low:.1f} to {100 * high:.1f}", f"{each.confidence:.3f}", weakest])
    of = f"; real: {counted(real.num_images, 'test image', 'test images')}" if real else ""
    return [f"by the judge {setup.config.judge}{of}", *aligned(rows)]


def measure_table(measured: dict[float, list[Measured]]) -> list[str]:
    first = next(iter(measured.values()))
    rows = [["scale", *(name for each in first for name in (each.name, "95 %"))]]
    for scale, each in measured.items():
        rows.append([f"{scale:g}", *(text for one in each for text in texts(one.value, one.interval))])
    rows.append(["real images", *(text for one in first for text in texts(one.floor, one.floor_interval))])
    return aligned(rows)


def texts(value: float, interval: tuple[float, float]) -> tuple[str, str]:
    return rounded(value, 3), f"{rounded(interval[0], 3)} to {rounded(interval[1], 3)}"


def sight(rungs: Sequence[Rung]) -> str:
    failed = [rung.name for rung in rungs if not rung.passed]
    return f"does not see: {', '.join(failed)}; do not trust it there" if failed else "sees all of it"
