"""Asks a model's own pipeline of diffusers what its network is given.

The pipeline runs as published, but with recorders in place of the network, of the scheduler's step and of the VAE's
decoder, for two steps at one timestep; nothing is denoised. What the first step returns is ours to choose, so what the
network and the decoder then get shows how the pipeline packs, scales and shifts its latents.
"""

import copy
import inspect
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from ddae.backbones.hooks import run_on_meta
from ddae.backbones.null_text import has_text_encoder, zeros_for_text

BASE = 1024
"""Latents are numbered by two digits to this base, which float32 carries through any scaling without loss."""

Told = Callable[[float], tuple[float, float]]
"""The pipeline's own timestep for one of ours, and what noised images are multiplied by for it."""

DECODERS = "vae", "movq", "vqvae"


class Step(NamedTuple):
    """What a scheduler's step returns."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class Recorded(Exception):
    """Ends a pipeline once everything that is asked of it is known."""


@dataclass(frozen=True)
class Recording:
    """One run of a pipeline."""

    calls: list[dict[str, Any]]
    """The arguments of the network, for every time that the second step calls it."""
    latents: Tensor
    """What the first step returned, [1, ...] in the pipeline's own layout, float32."""
    decoded: Tensor | None
    """What the VAE was given; None without a VAE."""
    planned: tuple[Tensor, Tensor | None]
    """The timesteps that the scheduler made for the pipeline's own sampling, and their sigmas if it has any."""


class Tracer:
    """Runs a pipeline with recorders in it. Its text encoders run once for each prompt."""

    def __init__(self, pipeline: Any, network: nn.Module, part: str, image_size: int, told: Told):
        """part: what the pipeline calls the network: transformer or unet.
        image_size: side of the images in pixels; 0 is the pipeline's own."""
        self.pipeline, self.network, self.told = pipeline, network, told
        self.signature = inspect.signature(type(network).forward)
        self.parameters = inspect.signature(type(pipeline).__call__).parameters
        self.arguments = arguments(pipeline, network, image_size)
        self.encoded: dict[tuple[bool, int, int], Any] = {}
        self.outputs: dict[Any, Any] = {}
        pipeline.set_progress_bar_config(disable=True)
        setattr(pipeline, part, stand_in(network, "forward", self._forward))
        for name in DECODERS:
            if vae := getattr(pipeline, name, None):
                setattr(pipeline, name, stand_in(stand_in(vae, "decode", self._decode), "encode", encode_surely(vae)))
        scheduler = pipeline.scheduler
        self.step_signature, self.plan = inspect.signature(scheduler.step), scheduler.set_timesteps
        scheduler.step = passing_for(scheduler.step, self._step)
        scheduler.set_timesteps = passing_for(self.plan, self._set_timesteps)
        self.encode_prompt = getattr(pipeline, "encode_prompt", None)
        if self.encode_prompt:
            pipeline.encode_prompt = passing_for(self.encode_prompt, self._encode_prompt)

    def start(self, timestep: float, image_size: int) -> None:
        """Finds out whether the pipeline runs without an image, with one of this side, or with a mask as well; the
        image is grey and the mask wants all of it painted anew. Raises what the pipeline raised last if it never
        runs."""
        grey, white = (PIL.Image.new("RGB", (image_size, image_size), (value,) * 3) for value in (128, 255))
        known = self.arguments
        failed: Exception | None = None
        for images in ({}, {"image": grey}, {"image": grey, "mask_image": white}, {"control_image": grey}):
            if all(name in self.parameters for name in images):
                self.arguments = known | images
                try:
                    self.run(timestep)
                except Exception as error:  # pipelines check their arguments with errors of every class
                    failed = error
                else:
                    return
        raise failed or ValueError("it does not run")

    def run(
        self,
        timestep: float,
        fill: Callable[[Tensor], Tensor] = torch.zeros_like,
        other: bool = False,
        num_images: int = 1,
        batch_by: str = "prompt",
    ) -> Recording:
        """Runs the pipeline at a timestep; the first step returns fill(latents).

        other: with another prompt than the empty one, and another image than a grey one, where it takes those.
        num_images: how many images are made at once, as the argument batch_by says."""
        self.calls: list[dict[str, Any]] = []
        self.latents: list[Tensor] = []
        self.decoded: Tensor | None = None
        self.timestep, self.fill, self.kind, self.texts = self.told(timestep)[0], fill, (other, num_images), 0
        given = dict(self.arguments)
        if "prompt" in given:
            given["prompt"] = "a" if other else ""
        if num_images > 1:
            given[batch_by] = [given["prompt"]] * num_images if batch_by == "prompt" else num_images
        if image := next((name for name in ("image", "control_image") if other and name in given), None):
            given[image] = striped(given[image].size)
        with torch.no_grad(), torch.random.fork_rng([]), warnings.catch_warnings(), suppress(Recorded):
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(0)
            self.pipeline(**given)
        return Recording(self.calls, self.latents[0], self.decoded, self.planned)

    def run_twice(self, timestep: float) -> Recording | None:
        """Runs the pipeline for two images at once, by a list of prompts or by a number; None if neither runs."""
        for batch_by in ("prompt", "num_images_per_prompt", "batch_size"):
            if batch_by in (self.arguments if batch_by == "prompt" else self.parameters):
                with suppress(Exception):  # pipelines for one image at a time fail with errors of every class
                    return self.run(timestep, num_images=2, batch_by=batch_by)
        return None

    def drop_text_encoders(self) -> None:
        """Frees the memory of text encoders; the texts of all later runs must have been encoded."""
        for name, part in self.pipeline.components.items():
            if "text_encoder" in name and part is not None and self.encode_prompt:
                shell = stand_in(part, "forward", self._forward)
                shell.__dict__.update(_modules={}, _parameters={}, _buffers={})
                setattr(self.pipeline, name, shell)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(self.network, *args, **kwargs).arguments
        given = {name: value for name, value in bound.items() if name not in ("self", "kwargs", "return_dict")}
        self.calls.append(given | bound.get("kwargs", {}))
        leaves, spec = tree_flatten((args, kwargs))
        key = repr(spec), *map(shape_of, leaves)
        if key not in self.outputs:
            self.outputs[key] = output_of(self.network, args, kwargs)
        return tree_map_only(Tensor, lambda output: torch.zeros(output.shape), self.outputs[key])

    def _step(self, *args: Any, **kwargs: Any) -> Step:
        sample = self.step_signature.bind(*args, **kwargs).arguments["sample"]
        self.latents.append(self.fill(sample.float()))
        if len(self.latents) == 1:
            self.calls.clear()
        elif not any(getattr(self.pipeline, name, None) for name in DECODERS):
            raise Recorded
        return Step(self.latents[-1], self.latents[-1])

    def _decode(self, latents: Tensor, *args: Any, **kwargs: Any) -> None:
        self.decoded = latents.float()
        raise Recorded

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        scheduler = self.pipeline.scheduler
        self.plan(*args, **kwargs)
        sigmas = getattr(scheduler, "sigmas", None)
        self.planned = scheduler.timesteps, sigmas if isinstance(sigmas, Tensor) else None
        scheduler.timesteps = torch.full((2,), self.timestep).to(scheduler.timesteps.dtype)

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        key = *self.kind, self.texts
        self.texts += 1
        if key not in self.encoded:
            assert self.encode_prompt
            if kwargs.get("prompt", "") is None:  # which not every pipeline knows to have embeddings in its place
                kwargs["prompt"] = ""
            self.encoded[key] = tree_map_only(Tensor, in_float32, self.encode_prompt(*args, **kwargs))
        return self.encoded[key]


def leave_unscaled(scheduler: Any) -> None:
    """Has a scheduler hand on noised images to the network as they are."""
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input = lambda sample, *args, **kwargs: sample


def shape_of(leaf: Any) -> Any:
    """What of an argument can decide the shape of an output."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), str(leaf.dtype)
    return repr(leaf) if isinstance(leaf, int | str | None) else type(leaf).__name__


def output_of(network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What a network returns, in shape: on the meta device, or by its first blocks alone where it looks at values."""
    try:
        return run_on_meta(network, *tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (kwargs, args)))
    except Exception:
        short = copy.copy(network)
        short.__dict__["_modules"] = {
            name: child[:1] if isinstance(child, nn.ModuleList) and name.endswith(("blocks", "layers")) else child
            for name, child in network.named_children()
        }
        dtype: Any = network.dtype
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return short(*args, **kwargs)


def stand_in(module: nn.Module, method: str, recorder: Callable) -> nn.Module:
    """A module that passes for this one, on the CPU and in float32, and calls recorder in place of the method."""
    other = copy.copy(module)
    kind, cpu = type(module), torch.device("cpu")
    as_if = {"dtype": property(lambda self: torch.float32), "device": property(lambda self: cpu)}
    other.__class__ = type(kind.__name__, (kind,), {**as_if, "__module__": kind.__module__})
    other.__dict__[method] = passing_for(getattr(module, method), recorder)
    return other


def encode_surely(vae: Any) -> Callable:
    """The VAE's encode(), wherever the VAE is, with the means of its posterior for samples."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    def encode(images: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = vae.encode(images.to(next(vae.parameters()).device), *args, **kwargs)
        for name, value in output.items():
            if isinstance(value, DiagonalGaussianDistribution):
                output[name] = DiagonalGaussianDistribution(value.parameters.cpu(), deterministic=True)
            else:
                output[name] = value.cpu()
        return output

    return encode


def passing_for(method: Callable, recorder: Callable) -> Callable:
    """The recorder with the method's signature, which pipelines look at."""
    return wraps(method)(lambda *args, **kwargs: recorder(*args, **kwargs))


def arguments(pipeline: Any, network: Any, image_size: int) -> dict[str, Any]:
    """What the pipeline is called with: an empty prompt, or embeddings of zeros where it has no text encoder."""
    config, parameters = network.config, inspect.signature(type(pipeline).__call__).parameters
    wanted: dict[str, Any] = {
        "use_resolution_binning": False, "enable_prompt_rewrite": False, "strength": 1.0, "noise_level": 0,
        "output_type": "pt", "prompt": "",
    }  # fmt: skip
    if image_size:
        wanted |= {"height": image_size, "width": image_size, "max_area": image_size**2}
    if config.get("guidance_embeds") and "guidance_scale" in parameters and not parameters["guidance_scale"].default:
        wanted["guidance_scale"] = 1.0
    if not has_text_encoder(pipeline):
        wanted |= (zeros := zeros_for_text(pipeline, network))
        if any(name.startswith("prompt_embeds") for name in zeros):
            del wanted["prompt"]
            wanted["negative_prompt"] = None
    return {name: value for name, value in wanted.items() if name in parameters}


def striped(size: tuple[int, int]) -> PIL.Image.Image:
    """An image that is unlike any grey one everywhere."""
    ramp = np.linspace(0, 100, size[0]).astype(np.uint8)[None, :, None]
    return PIL.Image.fromarray(np.broadcast_to(ramp, (size[1], size[0], 3)).copy())


def in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def digit(place: int) -> Callable[[Tensor], Tensor]:
    """Makes a function that numbers latents from 0, and returns the digit of the number at a place, to BASE."""
    return lambda latents: (
        torch.arange(latents.numel(), dtype=torch.float32).div(BASE**place, rounding_mode="floor") % BASE
    ).reshape(latents.shape)
