"""Which features go together: forward selection by leave-one-out accuracy, over sums of Gram matrices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ddae.scaling import Standardise

PENALTIES = tuple(10.0 ** (half / 2) for half in range(-10, 1))
"""L2 penalties, in units of the mean squared error, on features whose squares sum to 1 on average."""


Members = tuple[tuple[str, int], ...]
"""(block, timestep) of each of several features."""


def at_timesteps(members: Members) -> dict[int, tuple[str, ...]]:
    """timestep -> its blocks; one forward pass serves them all."""
    timesteps = dict.fromkeys(timestep for _, timestep in members)
    return {each: tuple(block for block, timestep in members if timestep == each) for each in timesteps}


def name_of(members: Members) -> str:
    """up.1.0+mid@30,up.1.0@60"""
    return ",".join(f"{'+'.join(blocks)}@{timestep}" for timestep, blocks in at_timesteps(members).items())


def members_of(name: str) -> Members:
    """What name_of() was given, a timestep after the other. Raises ValueError where it is no such name."""
    try:
        parts = [
            (blocks.split("+"), int(timestep)) for blocks, timestep in (each.split("@") for each in name.split(","))
        ]
        members = tuple((block, timestep) for blocks, timestep in parts for block in blocks)
        if not all(block for block, _ in members) or len(set(members)) < len(members):
            raise ValueError
    except ValueError as error:
        raise ValueError(f"{name!r} names no features; give blocks and timesteps, as up.1.0+mid@30,mid@60") from error
    return members


@dataclass(frozen=True)
class Step:
    """A feature that joined."""

    name: str
    correct: np.ndarray
    """float [N]: the weight of each image that ridge classifies correctly without having seen it, on all that have
    joined, and 0 for the others."""
    gain: float
    """What it added to the mean of that; the whole of it where it is the first."""
    stderr: float
    """Paired standard error of the gain."""


def gram(features: Tensor) -> Tensor:
    """The inner products [N, N] of standardised features [N, ...], divided by their width, so that a wide feature
    counts no more than a narrow one when they are added up: the mean of the diagonal is 1."""
    x = Standardise(features)(features).flatten(1)
    return x @ x.T / x.shape[1]


def leave_one_out(gram: Tensor, labels: Tensor, num_classes: int, penalty: float) -> Tensor:
    """What ridge regression on one-hot labels predicts of every image when it is fitted on all the others, [N, K].

    gram: of centred features. With A the inverse of gram + N penalty I, the residuals without image i are
    (A y)_i / (A_ii - 1 / (N^2 penalty)), the second term being the intercept's (Allen 1974).
    """
    num_images = len(labels)
    targets = functional.one_hot(labels, num_classes).to(gram.dtype)
    shift = num_images * penalty
    identity = torch.eye(num_images, dtype=gram.dtype, device=gram.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + shift * identity))
    slack = (inverse.diagonal() - 1 / (num_images * shift)).clamp(min=1e-12)
    return targets - (inverse @ (targets - targets.mean(0))) / slack[:, None]


def select(
    grams: Mapping[str, Tensor],
    labels: Tensor,
    num_classes: int,
    most: int,
    may_join: Callable[[Sequence[str], str], bool] = lambda joined, name: True,
    num_best: int = 12,
    weights: np.ndarray | None = None,
) -> list[Step]:
    """Add features one by one, each time the one whose sum with those that have joined has the best leave-one-out
    accuracy.

    grams: name -> gram(). most: how many may join. may_join: whether a feature may follow those that have joined.
    num_best: only so many that are best alone are tried after the first. weights: how much each image counts, [N], as
    for balanced accuracy; 1 if not given.
    """
    steps: list[Step] = []
    weights = np.ones(len(labels)) if weights is None else weights
    candidates = dict(grams)
    total, penalty = torch.zeros(()), PENALTIES[len(PENALTIES) // 2]
    while len(steps) < most:
        joined = [step.name for step in steps]
        allowed = [name for name in candidates if name not in joined and may_join(joined, name)]
        if not allowed:
            break

        def correct(name: str, penalty: float, total: Tensor = total, size: int = len(steps) + 1) -> np.ndarray:
            predicted = leave_one_out((total + grams[name]) / size, labels, num_classes, penalty)
            return (predicted.argmax(1) == labels).cpu().numpy() * weights

        merit = {name: correct(name, penalty).mean() for name in allowed}
        best = max(merit, key=lambda name: merit[name])
        if not steps:
            candidates = {name: grams[name] for name in sorted(merit, key=lambda name: -merit[name])[:num_best]}
        found = {each: correct(best, each) for each in PENALTIES}
        penalty = max(found, key=lambda each: found[each].mean())
        gained = found[penalty] - (steps[-1].correct if steps else 0)
        stderr = gained.std() / len(labels) ** 0.5
        steps.append(Step(best, found[penalty], float(gained.mean()), float(stderr)))
        total = total + grams[best]
    return steps


def worthwhile(steps: Sequence[Step]) -> int:
    """How many steps there are before the first that adds no more than its standard error."""
    return next((number for number, step in enumerate(steps) if step.gain <= step.stderr), len(steps))
