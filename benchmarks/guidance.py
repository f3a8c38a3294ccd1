"""Guidance of the network that ships by a head on its own features: how good, and what it costs.

    python sweeps/noisy_classifier.py                          # trains the head, in minutes
    python benchmarks/guidance.py --classifier out/<its folder>  # half an hour; goes on when stopped

Samples of all classes from the same noise at every scale: `num_few` of them, `num_samples` at scale 0 and at `goal`,
of which the goals are: 85 % class accuracy by an independent judge, a KD that is no worse than without guidance (under
the judge and under EfficientNet-Lite0), and seconds of at most 1.1 (1 + kappa) times those of the unguided network for
as many evaluations. Cost: operations as torch counts them, and seconds of one step in turn, of the unguided network; of
a guided step; of the same head in a second pass (1 + 2 kappa); of an external network for noised images (1 + 2 c) that
is not trained, as its cost does not depend on its weights. Its training comes on top.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import record
import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddae.generation.measures import measure
from ddae.generation.sampling import steps_of
from ddae.guidance import Guide
from ddae.noisy_wide_resnet import NoisyWideResNet, sizes_of
from ddae.report.style import make_axes, open_frame, save
from sweeps import guide, guiding
from sweeps.guiding import Guided, Verdict
from sweeps.sampling import JUDGE, keep, sampled, write_json

GOAL_ACCURACY, GOAL_SECONDS = 0.85, 1.1
FEW_RESAMPLES = 5
"""Of features so many that a Fréchet distance takes seconds."""
Found = dict[float, dict[str, Any]]
"""By scale, what the judge and the extractors say."""


@dataclass(frozen=True)
class Guidance:
    classifier: str
    scales: tuple[float, ...] = (0, 0.5, 1, 2, 5, 10, 20)
    goal: float = 5
    """The scale of which the goals are."""
    num_few: int = 200
    num_samples: int = 1000
    """At scale 0 and at the goal."""
    steps: int = 25
    second: str = "efficientnet-lite0"
    """An extractor beside the judge, of scale 0 and the goal."""
    num_second: int = 1000
    """Samples that it sees."""
    external: tuple[str, ...] = ("wrn:10-1", "wrn:28-10")
    """Networks for noised images, by depth and width."""
    batch_size: int = 64
    repeats: int = 15
    out: Path = Path("out/benchmark-guidance")


def main(config: Guidance) -> None:
    torch.set_num_threads(1)
    few, many = (set_up(config, number, str(JUDGE)) for number in (config.num_few, config.num_samples))
    goal = {scale: quality(many.at(scale)) for scale in (0.0, config.goal)}
    table = {scale: quality(few.at(scale)) for scale in config.scales}
    cost = costs(config, many.at(config.goal))
    real = guiding.judged_real(many)
    report(config, few, table, goal, cost, real)
    second = set_up(config, config.num_second, config.second)
    for scale in goal:
        goal[scale] |= {config.second: quality(second.at(scale))[config.second]}
    report(config, few, table, goal, cost, real)


def report(
    config: Guidance, few: Guided, table: Found, goal: Found, cost: dict[str, Any], real: Verdict | None
) -> None:
    """What is known so far, as a file, a figure and lines."""
    results = {
        "classifier": few.classifier.measured, "head": few.head, "block": few.classifier.block,
        "pooling": few.classifier.pooling, "sampler": few.sampler, "steps": config.steps,
        "num_few": config.num_few, "num_samples": config.num_samples, "judge_on_real": real and asdict(real),
        "num_second": config.num_second, "few": table, "many": goal, "cost": cost, "goals": goals(config, goal, cost),
        "load_average": os.getloadavg(),
    }  # fmt: skip
    record.write("guidance", results)
    draw(table, real, record.RESULTS / "guidance.png")
    for name, met in results["goals"].items():
        print(name, met)


def set_up(config: Guidance, num_samples: int, extractor: str) -> Guided:
    scales = config.scales if num_samples == config.num_few else (0.0, config.goal)
    resamples = 50 if extractor == str(JUDGE) else FEW_RESAMPLES
    flags = guide.Guide(
        classifier=config.classifier, scale=scales, num_samples=num_samples, steps=config.steps, judge=str(JUDGE),
        extractor=(extractor,), force=True, num_resamples=resamples, batch_size=config.batch_size, out=config.out,
        sampler="ddim",
    )  # fmt: skip
    return guiding.set_up(flags)


def quality(setup: Guided) -> dict[str, Any]:
    """What the judge and the extractor say of the samples of a scale; kept beside these."""
    [extractor] = setup.extractors
    name = Path(extractor.name).name
    kept = setup.folder / f"quality-{setup.config.num_samples}-{name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    everything = sampled(setup)
    keep(setup, everything)
    images = everything[: setup.config.num_samples]
    assert setup.judge
    verdict: Verdict = guiding.judged(setup.judge, images, setup.classes, guiding.labels_of(setup))
    print(f"scale {setup.scale:g}: {len(images)} samples, {100 * verdict.accuracy:.1f} % of their class", flush=True)
    real = reference(extractor.name, setup.config.num_samples, setup)
    measured = measure(extractor(images), *real, extractor.distance, setup.config.num_resamples)
    print(*(f"{each.name} {each.value:.4g} {each.interval}" for each in measured), flush=True)
    found = asdict(verdict) | {name: [asdict(each) for each in measured]}
    write_json(kept, found)
    return found


REAL: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}


def reference(name: str, number: int, setup: Guided) -> tuple[Tensor, Tensor]:
    """Features of real images of the classes, and of as many others."""
    if (name, number) not in REAL:
        one, other = (setup.extractors[0](setup.real(setup.rows[start : start + number])) for start in (0, number))
        REAL[name, number] = one, other
    return REAL[name, number]


def costs(config: Guidance, setup: Guided) -> dict[str, Any]:
    """Operations of one image, and seconds of a batch, in the middle of the sampler, each in forward passes."""
    backbone, guided = setup.backbone, setup.denoise
    assert isinstance(guided, Guide)
    timestep = steps_of(backbone.schedule, config.steps)[config.steps // 2].timestep
    log_sigma = float(np.log(backbone.sigma(timestep)))

    def gradient(x_t: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        with torch.enable_grad():
            x = x_t.clone().requires_grad_().clone()
            torch.autograd.grad(score(x, torch.full((len(x),), log_sigma)).sum(), x)

    def in_a_second_pass(x: Tensor, log_sigmas: Tensor) -> Tensor:
        map = backbone.capture(x, timestep, [guided.block], lambda map: map)[guided.block]
        return guided.scalar(map, log_sigmas, np.arange(len(x)))

    def by(score: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], None]:
        return lambda x: (gradient(x, score), backbone.denoise(x, timestep))[0]

    cases: dict[str, Callable[[Tensor], object]] = {
        "unguided": lambda x: backbone.denoise(x, timestep),
        "one pass": lambda x: guided(x, timestep, np.arange(len(x))),
        "a second pass": by(in_a_second_pass),
    }
    for name in config.external:
        network = NoisyWideResNet(*sizes_of(name), backbone.encoder.shape[0], len(setup.classes))
        network.eval().requires_grad_(False)
        cases[f"external {name}"] = by(
            lambda x, log_sigmas, network=network: network(x, log_sigmas).log_softmax(1)[:, 0]
        )
    shape = backbone.encoder.shape
    with torch.no_grad():
        operations = {name: counted(run, torch.randn(1, *shape)) for name, run in cases.items()}
        timed = {name: run for name, run in cases.items() if operations[name] < 20 * operations["unguided"]}
        wall, cpu = times(timed, torch.randn(config.batch_size, *shape), config.repeats)
    return {
        "kappa": guided.cost - 1,
        "passes by operations": {name: each / operations["unguided"] for name, each in operations.items()},
        "passes by wall time": {name: record.ratio(wall, name, "unguided") for name in timed},
        "passes by CPU time": {name: record.ratio(cpu, name, "unguided") for name in timed},
        "wall seconds of a batch, median": {name: median(wall[name]) for name in timed},
        "batch": config.batch_size, "repeats": config.repeats,
    }  # fmt: skip


def counted(run: Callable[[Tensor], object], x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        run(x)
    return counter.get_total_flops()


def times(
    cases: dict[str, Callable[[Tensor], object]], x: Tensor, repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU seconds of each case in turn, without the first."""
    cpu: dict[str, list[float]] = {name: [] for name in cases}

    def timed(name: str) -> None:
        started = time.process_time()
        cases[name](x)
        cpu[name].append(time.process_time() - started)

    wall = record.interleave({name: lambda name=name: timed(name) for name in cases}, repeats)
    return wall, {name: each[1:] for name, each in cpu.items()}


def goals(config: Guidance, goal: dict[float, dict[str, Any]], cost: dict[str, Any]) -> dict[str, Any]:
    """Each goal, what was found and what is allowed."""
    unguided, guided = goal[0.0], goal[config.goal]
    allowed = GOAL_SECONDS * (1 + cost["kappa"])
    found: dict[str, Any] = {
        "class accuracy": [guided["accuracy"], GOAL_ACCURACY, guided["accuracy"] >= GOAL_ACCURACY],
    }
    for name in (name for name in (JUDGE.name, config.second) if name in guided):
        ours, theirs = (next(m["value"] for m in each[name] if m["name"] == "KD") for each in (guided, unguided))
        found[f"KD under {name}"] = [ours, theirs, ours <= theirs]
    for kind in ("wall time", "CPU time", "operations"):
        passes = cost[f"passes by {kind}"]["one pass"]
        found[f"passes by {kind}"] = [passes, allowed, passes <= allowed]
    return found


def draw(table: dict[float, dict[str, Any]], real: Verdict | None, path: Path) -> None:
    """Accuracy, and below it KD and recall under the judge, against the scale."""
    figure, axes = make_axes(6.5, 5.5, 3)
    places = range(len(table))
    first = next(iter(table.values()))
    for axis, name in zip(axes, ("accuracy", "KD", "recall"), strict=True):
        if name == "accuracy":
            found = [(each["accuracy"], each["interval"]) for each in table.values()]
            floor = real.accuracy if real else None
        else:
            by_name = [next(m for m in each[JUDGE.name] if m["name"] == name) for each in table.values()]
            found = [(each["value"], each["interval"]) for each in by_name]
            floor = next(m["floor"] for m in first[JUDGE.name] if m["name"] == name)
        values = np.array([value for value, _ in found])
        around = np.abs(np.array([interval for _, interval in found]).T - values)
        axis.errorbar(places, values, around, color="black", marker="o", ms=4, linewidth=1, capsize=2)
        if floor is not None:
            axis.axhline(floor, color="0.6", linestyle="--", linewidth=1)
        label = {"accuracy": "judge: of their class", "KD": "KD (less is better)"}.get(name, name)
        axis.set(ylabel=label, xticks=[])
        open_frame(axis.figure)
    axes[-1].set_xticks(list(places), [f"{scale:g}" for scale in table])
    axes[-1].set(xlabel="scale of guidance; dashed: real images")
    save(figure, path)


if __name__ == "__main__":
    main(tyro.cli(Guidance, description=__doc__))
