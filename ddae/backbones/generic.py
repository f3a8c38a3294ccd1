"""Any other network of diffusers: its own pipeline says what it is given, and its module tree which blocks it has."""

import inspect
import logging
import re
import traceback
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddae.backbones.base import Backbone, BlockSpec, Encoder, Settings, pixels_of, token_grid
from ddae.backbones.files import (
    check_files,
    dtype_of,
    first_line,
    load_network,
    model_class,
    quiet,
    read_json,
    subfolder,
    variant,
    weights,
)
from ddae.backbones.null_text import has_text_encoder, missing_parts
from ddae.backbones.pipelines import DECODERS, Tracer, leave_unscaled, output_of
from ddae.backbones.predictions import of_scheduler
from ddae.backbones.schedules import make_scheduler, noise_of, read_scheduler, told
from ddae.backbones.traced import PipelineInputs
from ddae.backbones.unets import openai_specs
from ddae.backbones.vae import PipelineLatents, WithImage, find_vae, measure, with_vae
from ddae.noise import FirstChannels, Flow, Schedule

PLAIN_UNETS = "UNet2DModel", "UNet2DConditionModel"
"""Networks whose pipelines take what they return as the scheduler's prediction_type says, without a change of sign."""
NETWORK_FOLDERS = "transformer", "unet", "decoder", "prior"

logger = logging.getLogger("ddae")


def network_class(folder: Path) -> str:
    """The class of the network in a diffusers folder: a pipeline with transformer/ or unet/, or the network alone.

    Raises ValueError if diffusers has no such network.
    """
    import diffusers

    path = subfolder(folder, *NETWORK_FOLDERS)
    name = model_class(path)
    kind = getattr(diffusers, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.ModelMixin)):
        raise ValueError(f"{path} is a {name}, which is no network of diffusers {diffusers.__version__}")
    return name


def load(folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Loads a diffusers folder of any class whose pipeline is known."""
    import diffusers

    path, name = subfolder(folder, *NETWORK_FOLDERS), network_class(folder)
    network = load_network(getattr(diffusers, name), path, settings.precision)
    kind = pipeline_class(folder, network)
    if kind.__name__ != (named := model_class(folder)):
        logger.warning("%s is a %s; it is run as %s runs it", folder, named, kind.__name__)
    try:
        return make_backbone(network, kind, folder, fingerprint, settings)
    except Exception as error:  # of any class: neither network nor pipeline was ever seen here
        if isinstance(error, ValueError | OSError) and str(folder) in str(error):
            raise
        raise ValueError(f"{path} is a {name}, and {why_not(error, kind, folder)}") from error


def why_not(error: Exception, kind: Any, folder: Path) -> str:
    """Why a pipeline does not run, in words that do not ask for knowledge of its code."""
    frames, name = traceback.extract_tb(error.__traceback__), kind.__name__
    if isinstance(error, ValueError) and Path(frames[-1].filename).parent == Path(__file__).parent:
        return f"{name} does not say how to run it: {first_line(error)}"
    if not (folder / "model_index.json").exists():
        return f"{name} does not run it alone; give the whole folder of its pipeline, with model_index.json"
    if any(frame.name in ("retrieve_timesteps", "_set_timesteps") for frame in frames):
        given = (read_scheduler(folder) or {}).get("_class_name", "scheduler")
        return (
            f"{name} does not run with the {given} of {folder}; give the scheduler_config.json that it was published "
            f"with ({' or '.join(schedulers(kind))})"
        )
    if missing := missing_parts(kind, folder):
        return f"{name} needs {', '.join(f'{part}/' for part in missing)}, which {folder} lacks; put it there"
    return f"{name} fails with what is in {folder} ({type(error).__name__}: {first_line(error)}); fetch it again"


def pipeline_class(folder: Path, network: Any) -> Any:
    """The pipeline that a folder names, or else the one of diffusers whose network is of this class.

    Raises ValueError if there is none.
    """
    import diffusers
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    named = getattr(diffusers, model_class(folder), None)
    if isinstance(network, diffusers.UNet2DModel):
        return diffusers.LDMPipeline if decoder_folder(folder) else diffusers.DDPMPipeline
    if inspect.isclass(named) and issubclass(named, diffusers.DiffusionPipeline):
        return named
    if type(network) is diffusers.UNet2DConditionModel:
        return getattr(diffusers, unet_pipeline(network.config))
    usual = list(AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values())
    others = [getattr(diffusers, name, None) for name in dir(diffusers) if name.endswith("Pipeline")]
    for kind in [*usual, *sorted(filter(inspect.isclass, others), key=lambda kind: (edits(kind), len(kind.__name__)))]:
        if takes(kind, type(network)):
            return kind
    raise ValueError(
        f"{folder} is a {type(network).__name__}, which no pipeline of diffusers {diffusers.__version__} runs as the "
        "network that denoises images; give the folder of a pipeline, or of the network in it that does"
    )


def decoder_folder(folder: Path) -> Path | None:
    """The VAE in a pipeline's folder, or beside its UNet's."""
    places = (folder, folder.parent) if folder.name == "unet" else (folder,)
    return next((place / part for place in places for part in DECODERS if (place / part).is_dir()), None)


def unet_pipeline(config: Any) -> str:
    """The pipeline of a UNet2DConditionModel that lies in no pipeline's folder, by what it asks for."""
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 5 * config.addition_time_embed_dim
        refines = pooled == config.cross_attention_dim  # one text encoder, which XL itself has two of
        return "StableDiffusionXLImg2ImgPipeline" if refines else "StableDiffusionXLPipeline"
    if config.encoder_hid_dim_type == "image_proj":
        return "KandinskyV22Pipeline"
    if config.time_cond_proj_dim:
        return "LatentConsistencyModelPipeline"
    by_channels = {3: "IFPipeline", 8: "StableDiffusionInstructPix2PixPipeline", 9: "StableDiffusionInpaintPipeline"}
    return by_channels.get(config.in_channels, "StableDiffusionPipeline")


def edits(pipeline: Any) -> bool:
    """Whether a pipeline runs with an image alone."""
    image = inspect.signature(pipeline.__call__).parameters.get("image")
    return image is not None and image.default is image.empty


def takes(pipeline: Any, network: type) -> bool:
    """Whether a pipeline's constructor asks for a network of this class."""
    try:
        hints = typing.get_type_hints(pipeline.__init__)
    except (NameError, TypeError, ImportError):
        return False
    asked = [hints.get(part) for part in NETWORK_FOLDERS]
    return any(network is kind or network in typing.get_args(kind) for kind in asked)


def make_backbone(network: Any, kind: Any, folder: Path, fingerprint: str, settings: Settings) -> Backbone:
    """Builds the pipeline around the network, traces it, and reads inputs, noise and latents off the trace."""
    parameters = inspect.signature(kind.__init__).parameters
    part = next(name for name in NETWORK_FOLDERS if name in parameters)
    decoder = next((name for name in DECODERS if name in parameters), "")
    vae = find_vae(folder, decoder, settings) if decoder else None
    scheduler = make_scheduler(folder, is_flow(kind))
    in_edm = hasattr(scheduler, "precondition_noise")
    schedule: Schedule = noise_of(scheduler, folder, settings.num_steps if in_edm else 0)
    if not isinstance(schedule, Flow):  # noise is ours, and so is its scale
        leave_unscaled(scheduler)
    given = {part: network, "scheduler": scheduler} | ({decoder: vae} if vae else {})
    pipeline = make_pipeline(kind, folder, given, settings.precision)
    tracer = Tracer(pipeline, network, part, settings.image_size, partial(told, scheduler, schedule))
    middle = schedule.timesteps[len(schedule.timesteps) // 2]
    latent_stride, latent_channels = measure(vae) if vae else (1, 0)
    if not isinstance(size := network.config.get("sample_size") or 32, int):
        raise ValueError(f"it has sample_size={size}, and a square size is needed")
    side = settings.image_size or latent_stride * size
    tracer.start(middle, side // latent_stride if "low_res_scheduler" in parameters else side)
    inputs = PipelineInputs(tracer, middle)
    if isinstance(schedule, Flow):
        schedule = flow_of(tracer, middle, schedule.num_steps)
    lacking = [f"{name}/" for name in missing_parts(kind, folder) if "text_encoder" in name]
    if not has_text_encoder(pipeline) and any("embeds" in name for name in tracer.arguments):
        logger.warning("%s has no text encoder; its text is zeros, which it was not trained with", folder)
    elif lacking and has_text_encoder(pipeline):
        logger.warning("%s has no %s; its text is what %s makes without", folder, ", ".join(lacking), kind.__name__)
    tracer.drop_text_encoders()
    encoder: Encoder
    if inputs.packing is None:
        encoder = pixels_of(inputs.shape[-1], inputs.shape[0])
    else:
        if (wanted := inputs.packing.shift.shape[1]) != latent_channels:
            whole = (
                "" if (folder / "model_index.json").exists() else "; give its pipeline's folder, with model_index.json"
            )
            raise ValueError(f"its pipeline decodes {wanted} channels, and its VAE makes {latent_channels}{whole}")
        size = inputs.packing.shift.shape[-1] * latent_stride
        encoder = PipelineLatents(vae, size, inputs.packing.shift, inputs.packing.scale)
    if inputs.shows_image and in_edm:
        raise ValueError("it takes an image beside a noised one that EDM scales")
    if inputs.shows_image:
        schedule, encoder = FirstChannels(schedule, encoder.shape[0]), WithImage(encoder)
    if settings.image_size not in (0, encoder.image_size):
        raise ValueError(
            f"image_size={settings.image_size} does not suit {folder}, whose pipeline makes {encoder.image_size} of it"
        )
    digest = with_vae(f"{fingerprint} {inputs.fingerprint}", encoder)
    if hasattr(network, "up_blocks"):
        known = not inputs.shows_image and type(network).__name__ in PLAIN_UNETS
        denoised = of_scheduler(scheduler, schedule) if known else None
        specs = unet_specs(network)
        return Backbone(network, specs, schedule, encoder, inputs, digest, settings, denoised=denoised)
    specs = transformer_specs(network)
    side = inputs.grid(network)
    joins = watch_joins(network, specs, inputs(torch.zeros(1, *inputs.shape), middle), side**2)
    return Backbone(network, specs, schedule, encoder, inputs, digest, settings, image_tokens(side, joins))


def is_flow(kind: Any) -> bool:
    """Whether a pipeline's networks are rectified flows, by the scheduler that its constructor asks for; Sana's asks
    for another."""
    return any("FlowMatch" in name for name in schedulers(kind)) or kind.__name__.startswith("Sana")


def schedulers(kind: Any) -> list[str]:
    """The classes of schedulers that a pipeline's constructor asks for."""
    return re.findall(r"\w+Scheduler(?=\W|$)", str(inspect.signature(kind.__init__).parameters["scheduler"].annotation))


def make_pipeline(kind: Any, folder: Path, given: dict[str, Any], precision: str) -> Any:
    """The pipeline with these components, and with what else lies in its folder; None for what does not. Text encoders
    that are all stored in the precision that is asked for stay in it."""
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    needed = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    if isinstance(index.get("_class_name"), str):
        absent = [
            name
            for name, value in index.items()
            if isinstance(value, list) and all(isinstance(word, str | None) for word in value) and len(value) == 2
            if name not in given and not (folder / name).is_dir()
        ]
        absent += [name for name in needed if name not in index and name not in given]
        encoders = [name for name in index if "_encoder" in name and (folder / name).is_dir()]
        for name in encoders:
            check_files(folder / name, "*model")
        texts = [weights(folder, name, "*model") for name in encoders]
        dtypes = {dtype_of(files, precision) for files in texts}
        unused = [name for name in ("safety_checker", "watermarker") if name in index]
        with quiet():
            return kind.from_pretrained(
                folder,
                **given,
                **dict.fromkeys([*absent, *unused]),
                dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
                local_files_only=True,
                variant=next(filter(None, map(variant, texts)), None),
            )
    refines = {p.name: True for p in parameters if p.name == "requires_aesthetics_score"}  # SDXL's refiner
    with quiet():
        return kind(**dict.fromkeys(needed) | given | refines)


def flow_of(tracer: Tracer, timestep: int, num_steps: int) -> Flow:
    """The noise that the pipeline's own sampling has when it tells the network a timestep."""
    timesteps, sigmas = tracer.planned
    if sigmas is None or torch.allclose(timesteps / num_steps, sigmas[: len(timesteps)], atol=2e-3):
        return Flow(num_steps)
    usual = tracer.arguments
    tracer.arguments = {**usual, "num_inference_steps": num_steps}
    timesteps, sigmas = tracer.run(timestep).planned
    tracer.arguments = usual
    assert sigmas is not None
    levels = np.interp(np.arange(num_steps + 1), timesteps.flip(0), sigmas[: len(timesteps)].flip(0), left=0)
    return Flow(num_steps, tuple(levels.tolist()))


def unet_specs(network: Any) -> tuple[BlockSpec, ...]:
    """Counts blocks as OpenAI's code does where levels have resnets, and otherwise counts levels."""
    levels = [*network.down_blocks, *network.up_blocks]
    if all(hasattr(level, "resnets") for level in levels):
        return openai_specs(network)
    modules = [
        f"{stage}_blocks.{i}" for stage in ("down", "up") for i in range(len(getattr(network, f"{stage}_blocks")))
    ]
    names = [(module.replace("_blocks", ""), module) for module in modules]
    return tuple(BlockSpec(name, index, module) for index, (name, module) in enumerate(names, 1))


def transformer_specs(network: nn.Module) -> tuple[BlockSpec, ...]:
    """Counts block.0, block.1, ... through all lists of blocks, in the order in which the network has them."""
    lists = [
        (name, child)
        for name, child in network.named_children()
        if isinstance(child, nn.ModuleList) and (name.endswith("blocks") or name == "layers")
        if not name.startswith("text")
    ]
    modules = [f"{name}.{i}" for name, blocks in lists for i in range(len(blocks))]
    if not modules:
        raise ValueError(f"a {type(network).__name__} has no list of blocks to read features from")
    return tuple(BlockSpec(f"block.{i}", i, module) for i, module in enumerate(modules))


def watch_joins(network: nn.Module, specs: tuple[BlockSpec, ...], inputs: dict[str, Any], num_patches: int) -> "Joins":
    """How the network joins text and image to one sequence."""
    joins = Joins(num_patches)

    def begin(module: nn.Module, given: tuple) -> None:
        joins.inside = 0

    def enter(module: nn.Module, given: tuple) -> None:
        joins.inside += 1

    def leave(module: nn.Module, given: tuple, output: object) -> None:
        joins.inside -= 1
        joins.look(output)

    blocks = [network.get_submodule(spec.module) for spec in specs]
    hooks = [network.register_forward_pre_hook(begin)]
    hooks += [block.register_forward_pre_hook(enter) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    try:
        with joins:
            output_of(network, (), inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return joins


class Joins(TorchDispatchMode):
    """Watches where sequences of num_patches tokens are joined with others, outside the blocks."""

    def __init__(self, num_patches: int):
        super().__init__()
        self.num_patches, self.inside = num_patches, 0
        self.starts: dict[tuple[int, int], int] = {(1, num_patches): 0}
        """Where the image starts in sequences, by the axis of tokens in [N, T, C] or [T, N, C], and their number T."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.cat.default and not self.inside and output.ndim in (2, 3):
            axis = (args[1] if len(args) > 1 else 0) % output.ndim
            lengths = [part.shape[axis] for part in args[0] if part.ndim == output.ndim]
            if axis < output.ndim - 1 and self.num_patches in lengths:
                check_one(lengths.count(self.num_patches), self.num_patches)
                key = (1 if output.ndim == 2 else axis), sum(lengths)
                self.starts[key] = sum(lengths[: lengths.index(self.num_patches)])
        return output

    def look(self, output: Any) -> None:
        """Assumes that the image stands last in what a block returns, where no join says where it is."""
        shapes = [leaf.shape for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.ndim == 3]
        if not any((axis, shape[axis]) in self.starts for shape in shapes for axis in (0, 1)):
            longer = [shape[1] for shape in shapes if shape[1] > self.num_patches]
            if longer:
                self.starts[1, min(longer)] = min(longer) - self.num_patches
                logger.warning(
                    "assuming that the image's %d tokens stand last of %d", self.num_patches, min(longer)
                )  # fmt: skip


def check_one(num_sequences: int, num_patches: int) -> None:
    """Raises ValueError if the image cannot be told from the text by its length."""
    if num_sequences > 1:
        raise ValueError(f"text and image both have {num_patches} tokens; give another image_size")


def image_tokens(side: int, joins: Joins) -> Callable[[Any], Tensor]:
    """Makes a function that arranges what a block returns as a map [N, C, side, side]. Of several tensors it takes the
    one with a token for each patch; if text and image are one sequence, the image starts where it was joined."""

    def to_map(output: Any) -> Tensor:
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.ndim == 3]
        tokens = [leaf.transpose(0, 1) if (0, len(leaf)) in joins.starts else leaf for leaf in leaves]
        images = [leaf for leaf in tokens if {(0, leaf.shape[1]), (1, leaf.shape[1])} & joins.starts.keys()]
        if not images:
            raise ValueError(f"a block returns no tokens of {side} x {side} patches")
        sequence = min(images, key=lambda leaf: leaf.shape[1])
        check_one(sum(leaf.shape[1] == side**2 for leaf in images), side**2)
        length = sequence.shape[1]
        start = joins.starts.get((1, length), joins.starts.get((0, length), 0))
        return token_grid(sequence[:, start : start + side**2])

    return to_map
