"""Noise schedules as files describe them: the scheduler of a diffusers folder, or the options of an official code."""

import inspect
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ddae.backbones import lean
from ddae.backbones.files import quiet, read_json
from ddae.backbones.predictions import Denoised, of_scheduler
from ddae.noise import VE, VP, Flow, Schedule

logger = logging.getLogger("ddae")


def read_scheduler(folder: Path) -> dict[str, Any] | None:
    """The configuration of the scheduler in a diffusers folder, or beside that of a network alone, if there is one."""
    name = "scheduler_config.json"
    places = [folder / "scheduler" / name, folder / name]
    if not (folder / "model_index.json").exists():  # a network alone
        places.append(folder.parent / "scheduler" / name)
    return next((read_json(path) for path in places if path.exists()), None)


def make_scheduler(folder: Path, is_flow: bool = False) -> Any:
    """The scheduler of a diffusers folder; without one DDPM's, or that of rectified flows, and a warning.

    Raises ValueError if its class is not one of diffusers.
    """
    import diffusers

    config = read_scheduler(folder)
    if config is None:
        taken = "rectified flow" if is_flow else "DDPM's linear schedule"
        logger.warning("%s has no scheduler; taking %s, T = 1000", folder, taken)
        return diffusers.FlowMatchEulerDiscreteScheduler() if is_flow else diffusers.DDPMScheduler()
    name = config.get("_class_name", "DDPMScheduler")
    kind: Any = getattr(diffusers, str(name), None)
    is_scheduler = inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)
    if not is_scheduler:
        raise ValueError(
            f"the scheduler of {folder} is a {name}, which is no scheduler of diffusers {diffusers.__version__}"
        )
    with quiet():
        return lean.make_scheduler(kind, config)


def noise_of(scheduler: Any, folder: Path, num_steps: int = 0) -> VP | Flow | VE:
    """The noise that a scheduler of diffusers adds in training. Raises ValueError if it is of another kind.

    num_steps: length of the schedule whose steps are the timesteps of EDM's noise; 0 if that is not to be taken."""
    config, name = scheduler.config, type(scheduler).__name__
    flow = "FlowMatch" in name or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if flow and config.get("num_train_timesteps", 1000) > 1 and not config.get("invert_sigmas"):
        return Flow(config.get("num_train_timesteps", 1000))
    if num_steps and "sigma_data" in config and config.get("sigma_schedule", "karras") == "karras":
        return edm_schedule(config, num_steps)
    in_sigmas = config.get("timestep_type") == "continuous"  # and the network is told their logarithms, as EDM's
    how = ", whose sigmas are inverted" if flow else ", in sigmas" if in_sigmas else ""
    if how or not hasattr(scheduler, "alphas_cumprod") or "beta_schedule" not in config:
        raise ValueError(
            f"the noise of {folder} is that of a {name}{how}; what can be "
            "read is variance-preserving noise, which has a beta_schedule, and rectified flow. If the network was "
            "trained with one of these, give its scheduler_config.json"
        )
    return VP(scheduler.alphas_cumprod)


def told(scheduler: Any, schedule: Schedule, timestep: float) -> tuple[float, float]:
    """What a network is told at a timestep, and what its noised images are multiplied by."""
    if not isinstance(schedule, VE):
        return timestep, 1.0
    sigma = schedule.sigma(int(timestep))
    time = (getattr(scheduler, "precondition_noise", None) or scheduler.sigma_to_t)(sigma)
    return float(time), 1 / math.hypot(sigma, scheduler.config.sigma_data)


def read_noise(
    folder: Path, num_steps: int
) -> tuple[VP | Flow | VE, Callable[[float], tuple[float, float]], Denoised | None]:
    """The noise of a folder's scheduler, told() of it, and what its networks predict; without one that of DDPM, and a
    warning. Timesteps of EDM and of consistency models, which are told their noise, are the steps of EDM's sampler,
    num_steps in all."""
    scheduler = make_scheduler(folder)
    in_sigmas = hasattr(scheduler, "precondition_noise") or type(scheduler).__name__.startswith("CMStochastic")
    schedule = noise_of(scheduler, folder, num_steps if in_sigmas else 0)
    return schedule, partial(told, scheduler, schedule), of_scheduler(scheduler, schedule)


def edm_schedule(options: dict[str, Any], num_steps: int) -> VE:
    """The steps of EDM's sampler; sigma_min, sigma_max and rho are EDM's own where the options do not give them."""
    return VE(num_steps, **{name: options[name] for name in ("sigma_min", "sigma_max", "rho") if name in options})
