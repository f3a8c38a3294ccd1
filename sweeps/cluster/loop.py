"""The one training loop: steps, checkpoints and progress, in a process alone or in one of several."""

import io
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sweeps.search.task import Checkpoint

RECENT_STEPS = 100
"""The last so many steps give the loss and the speed that progress shows."""


class Training(Protocol):
    """A network, how one step trains it, and when it has ended.

    With several workers each gets a pickled copy, on which start() is called. What is drawn at random, the images of a
    step among it, must follow from the step's number alone, so that a training that goes on from a checkpoint ends with
    the same numbers. Where a network draws from PyTorch's own generator (dropout), loss() seeds it.
    """

    @property
    def num_steps(self) -> int: ...

    @property
    def batch_size(self) -> int:
        """Images of one step, those of all workers together."""
        ...

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Everything that decides the numbers, as JSON knows it; a checkpoint of another recipe is refused."""
        ...

    @property
    def autocast(self) -> torch.dtype | None:
        """The precision of loss() on devices that compute in it, bfloat16 or None for float32; weights and gradients
        stay as they are."""
        ...

    @property
    def max_gradient_norm(self) -> float:
        """Longer gradients are shortened to this; infinity leaves them alone."""
        ...

    @property
    def accumulate(self) -> int:
        """Parts in which a step's images go through the network, whose gradients are averaged."""
        ...

    @property
    def network(self) -> nn.Module:
        """What is trained; there from start() on, as the optimizer."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Each group begins with its peak learning rate."""
        ...

    def start(self, device: torch.device, rank: int, world_size: int) -> None:
        """Build network, optimizer and data. This is worker `rank` of `world_size`."""
        ...

    def schedule(self, step: int) -> float:
        """The share of the peak learning rates at a step."""
        ...

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """The mean loss over this worker's images of a step, which are as many as every other worker's; called
        `accumulate` times a step, over the next part of them.

        network: to be called in place of self.network, which it may wrap.
        """
        ...

    def after_step(self, step: int) -> Mapping[str, float]:
        """Called in every worker after every update, for a moving average or an evaluation; returns what was measured,
        mostly nothing."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a training needs to go on, in tensors and plain values; loss, seconds and recipe are kept apart."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainingProgress:
    num_steps: int
    """Steps taken so far."""
    loss: float
    """Mean of the last 100 steps."""
    images_per_second: float
    metrics: Mapping[str, float]
    """What after_step() measured."""


@dataclass
class Trained:
    losses: list[float] = field(default_factory=list)
    """One a step, the mean over its images."""
    seconds: float = 0.0
    """Spent in steps, over all times that the training was started."""


class Diverged(ValueError):
    """The loss is not a number any more."""


OnProgress = Callable[[TrainingProgress], None]


def run_loop(
    training: Training,
    checkpoint: Checkpoint,
    device: torch.device,
    stop: int | None = None,
    every_steps: int = 250,
    every_seconds: float = math.inf,
    on_progress: OnProgress = lambda progress: None,
) -> Trained:
    """The loop itself, in this process or in each of a process group; only its first process needs the checkpoint and
    on_progress. See train() for what they are."""
    rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if is_one_of_several() else (0, 1)
    training.start(device, rank, world_size)
    peaks = [group["lr"] for group in training.optimizer.param_groups]
    trained = _restore(training, checkpoint, device, rank)
    # With find_unused_parameters PyTorch keeps the order in which gradients are added up; without, it changes after
    # the first step, and a training that goes on would differ from an undisturbed one in the last digits.
    network = (
        DistributedDataParallel(training.network, find_unused_parameters=True)
        if is_one_of_several()
        else training.network
    )
    num_saved, saved_seconds = len(trained.losses), time.monotonic()
    recent: deque[float] = deque(maxlen=RECENT_STEPS)

    def report(metrics: Mapping[str, float]) -> None:
        if rank == 0 and trained.losses:
            last = trained.losses[-RECENT_STEPS:]
            speed = training.batch_size * len(recent) / sum(recent) if recent else 0.0
            on_progress(TrainingProgress(len(trained.losses), sum(last) / len(last), speed, metrics))

    report({})
    for step in range(len(trained.losses), training.num_steps if stop is None else stop):
        started = time.perf_counter()
        for group, peak in zip(training.optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * training.schedule(step)
        trained.losses.append(loss := update(training, network, step))
        if not math.isfinite(loss):
            rates = " and ".join(map(str, dict.fromkeys(peaks)))
            raise Diverged(f"the loss is not a number at step {step}; lower the learning rate {rates}")
        metrics = training.after_step(step)
        recent.append(time.perf_counter() - started)
        trained.seconds += recent[-1]
        report(metrics)
        if (step + 1) % every_steps == 0 or time.monotonic() - saved_seconds >= every_seconds:
            _save(training, trained, checkpoint, rank)
            num_saved, saved_seconds = step + 1, time.monotonic()
    if len(trained.losses) > num_saved:
        _save(training, trained, checkpoint, rank)
    return trained


def update(training: Training, network: nn.Module, step: int) -> float:
    """Take one step; returns its loss, the mean over the images of all workers."""
    network.train()
    device = next(network.parameters()).device
    training.optimizer.zero_grad(set_to_none=True)
    mean = torch.zeros((), device=device)
    for part in range(training.accumulate):
        last = part == training.accumulate - 1
        with nullcontext() if last or not isinstance(network, DistributedDataParallel) else network.no_sync():
            with torch.autocast(device.type, training.autocast, enabled=computes_in(training.autocast, device)):
                loss = training.loss(network, step) / training.accumulate
            loss.backward()
        mean += loss.detach()
    if training.max_gradient_norm < math.inf:
        nn.utils.clip_grad_norm_(network.parameters(), training.max_gradient_norm)
    training.optimizer.step()
    if isinstance(network, DistributedDataParallel):  # which may have lost the others by now
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return float(mean)


def computes_in(dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16: some CPUs emulate it, twenty times slower than float32."""
    if dtype is None or device.type != "cpu":
        return dtype is not None
    cpu: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.10 does not say
    return any(cpu.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def is_one_of_several() -> bool:
    return distributed.is_initialized() and distributed.get_world_size() > 1


def _restore(training: Training, checkpoint: Checkpoint, device: torch.device, rank: int) -> Trained:
    """Load into the training what its checkpoint has, as the first worker sees it."""
    held = [checkpoint.load() if rank == 0 else None]
    if is_one_of_several():
        distributed.broadcast_object_list(held)
    if held[0] is None:
        return Trained()
    try:
        state = torch.load(io.BytesIO(held[0]), map_location=device, weights_only=True)
        if state["recipe"] == training.recipe:
            training.load_state_dict(state)
            return Trained(list(state["losses"]), state["seconds"])
    except (KeyError, TypeError, RuntimeError, UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{checkpoint} is damaged, or of another version ({error}); delete it, and the training begins again"
        ) from error
    others = differences(state["recipe"], training.recipe)
    raise ValueError(f"{checkpoint} was made with other settings ({others}); give another --out")


def differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The settings of two recipes that are not the same, with both values."""
    return ", ".join(
        f"{name}={made.get(name, 'the default')} and not {wanted.get(name, 'the default')}"
        for name in {**made, **wanted}
        if made.get(name) != wanted.get(name)
    )


def _save(training: Training, trained: Trained, checkpoint: Checkpoint, rank: int) -> None:
    if rank == 0:
        kept = {"recipe": dict(training.recipe), "losses": trained.losses, "seconds": trained.seconds}
        torch.save(training.state_dict() | kept, file := io.BytesIO())
        checkpoint.save(file.getvalue())
