"""Noise schedules as files describe them: the scheduler of a diffusers folder, or the options of an official code."""

import logging
from pathlib import Path
from typing import Any

from ddae.backbones.files import read_json
from ddae.noise import VE, VP, Flow

logger = logging.getLogger("ddae")


def read_scheduler(folder: Path) -> dict[str, Any] | None:
    """The configuration of the scheduler in a diffusers folder, if there is one."""
    paths = folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"
    return next((read_json(path) for path in paths if path.exists()), None)


def read_schedule(folder: Path) -> VP:
    """The variance-preserving noise that the folder's scheduler adds; without a scheduler DDPM's linear schedule with
    1,000 steps, and a warning.

    Raises ValueError for a scheduler of another kind.
    """
    from diffusers import DDPMScheduler

    config = read_scheduler(folder)
    if config is None:
        logger.warning("%s has no scheduler; taking DDPM's linear schedule, T = 1000", folder)
        return VP(DDPMScheduler().alphas_cumprod)
    if "beta_schedule" not in config:
        raise ValueError(
            f"the scheduler of {folder} ({config.get('_class_name')}) is not a variance-preserving schedule, which has "
            "a beta_schedule; give the scheduler_config.json that the network was trained with"
        )
    return VP(DDPMScheduler.from_config(config).alphas_cumprod)


def read_noise(folder: Path, name: str, is_flow: bool) -> VP | Flow:
    """The noise that the folder's scheduler adds, of either kind. is_flow says whether networks of the class `name` are
    known to be trained as rectified flows; without a scheduler this decides."""
    config = read_scheduler(folder) or {}
    flow = "FlowMatch" in config.get("_class_name", "") or config.get("prediction_type") == "flow_prediction"
    if not flow and (config or not is_flow):
        return read_schedule(folder)
    if not config:
        logger.warning("%s has no scheduler; taking rectified flow, T = 1000", folder)
    if not is_flow:
        logger.warning("%s is not a known rectified flow; assuming that its timesteps count up to 1000", name)
    return Flow(config.get("num_train_timesteps", 1000))


def edm_schedule(options: dict[str, Any], num_steps: int) -> VE:
    """The steps of EDM's sampler; sigma_min, sigma_max and rho are EDM's own where the options do not give them."""
    return VE(num_steps, **{name: options[name] for name in ("sigma_min", "sigma_max", "rho") if name in options})
