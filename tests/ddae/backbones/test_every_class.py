"""Every image denoiser class of diffusers, in a folder laid out as the published one, against its own pipeline."""

import inspect
import re
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch.utils._pytree import tree_leaves

from ddae.backbones import Settings, load_backbone
from ddae.noise import VE, Flow
from tests.ddae.backbones.every_class import FOLDERS, NOT_BUILT, PIPELINES, arguments, classes

NUM_STEPS = 3

REFUSED = {
    "OmniGenPipeline": "FlowMatchEulerDiscreteScheduler, whose sigmas are inverted",
    "GlmImagePipeline": "all that it gives to its network depends on the prompt",
    "Ideogram4Pipeline": "text and image to its network in one sequence",
    "SanaSprintPipeline": "that of a SCMScheduler; what can be read is",
    "Cosmos2TextToImagePipeline": "cosmos_guardrail",
    "StableCascadePriorPipeline": "that of a DDPMWuerstchenScheduler; what can be read is",
    "ConsistencyModelPipeline class-conditional": "wants a class label",
    "DreamLitePipeline": r"\[1, 8, 16, 32\] is no map of an image",
    "DreamLiteMobilePipeline": r"\[1, 8, 16, 32\] is no map of an image",
    "UniDiffuserPipeline": "does not only arrange, scale and shift its latents",
    "AmusedPipeline": "that of a AmusedScheduler; what can be read is",
    "QwenImage21Pipeline": "to have 4 channels, but got 3",
    "FluxControlPipeline": "has nothing to give in place of one",
}
"""What cannot be run as it was trained, with the reason that is given."""
QUICKLY = set(REFUSED) - {"GlmImagePipeline", "Ideogram4Pipeline", "DreamLiteMobilePipeline"}
"""Of these, the folders that are written soon."""

ELSEWHERE = {
    "DiTPipeline": "runs as the official code does, with other time frequencies than diffusers: test_dit.py",
    "StableDiffusionDepth2ImgPipeline": "gets a flat map of depths, which its pipeline cannot give",
    "DiTPipeline as published": "the same",
    "IFSuperResolutionPipeline": "the same as StableDiffusionUpscalePipeline",
    "StableDiffusionUpscalePipeline": "gets the image itself, to which its pipeline adds noise at random",
}
"""What is not compared here, and why."""


def test_every_denoiser_of_images_that_diffusers_exports_has_a_folder():
    import diffusers

    exported = {name for name in dir(diffusers) if re.search(r"(2D\w*Model|UNet|UNetModel)$", name)}
    parts = [part for tiny in PIPELINES.values() for part in tiny.components.values()]
    built = {part[0] for part in parts if isinstance(part, tuple)}
    assert {name for name in exported if "ControlNet" not in name} <= built | set(NOT_BUILT)


@pytest.mark.parametrize("name", classes(but=REFUSED | ELSEWHERE))
@torch.no_grad()
def test_every_block_is_what_it_is_in_the_pipelines_own_run(name: str, tmp_path, monkeypatch):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    FOLDERS[name](tmp_path)
    backbone = load_backbone(str(tmp_path), settings_of(name))
    compare(backbone, tmp_path, name)
    check_batch(backbone)
    if "block.0" in backbone.modules:
        check_places(backbone)


def compare(backbone, folder, name):
    """Compares every block with the pipeline's own run at three noise levels, and the noise with its scheduler's."""
    modules = [block.module for block in backbone.blocks]
    steps, decoded, planned = record(load_pipeline(folder), name, modules)
    assert len(steps) == NUM_STEPS
    for (timestep, scale, rows), sigma in zip(steps, planned, strict=True):
        x_t = latents_of(backbone, decoded)
        if isinstance(backbone.schedule, VE):  # scales by itself
            timestep = min(backbone.schedule.timesteps, key=lambda step: abs(backbone.sigma(step) - float(sigma)))
            assert backbone.sigma(timestep) == pytest.approx(float(sigma), rel=1e-4)
        else:
            x_t = x_t * scale
        given = backbone.inputs(x_t, timestep)
        ours = Recorder(backbone.network, modules)
        backbone.network(**given)
        [mine] = ours.rows()
        ours.remove()
        assert any(close(mine, theirs) for theirs in rows), "no row of the pipeline's batch is what ours is"
        if isinstance(backbone.schedule, Flow) and timestep < backbone.schedule.num_steps:
            assert backbone.schedule.level(max(1, round(timestep))) == pytest.approx(float(sigma), abs=2e-3)


def check_batch(backbone):
    """Images are features of their own, whatever they are run with."""
    x_t, timestep = torch.randn(2, *backbone.encoder.shape), backbone.schedule.defaults[:2][-1]
    names = [block.name for block in backbone.blocks]
    together, *alone = (backbone.capture(x, timestep, names, lambda map: map) for x in (x_t, x_t[:1], x_t[1:]))
    for name in names:
        expected = torch.cat([maps[name] for maps in alone])
        assert (together[name] - expected).abs().max() <= 1e-3 * expected.abs().max()


def check_places(backbone):
    """What is changed in one place of the image changes the first block most in that place."""
    timestep, side = backbone.schedule.defaults[1], backbone.blocks[0].size
    x_t = torch.randn(1, *backbone.encoder.shape)
    patch = x_t.shape[-1] // side
    for row, column in ((0, 1), (side - 1, 0), (1, side - 2)):
        other = x_t.clone()
        other[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += 10
        before, after = (backbone.capture(x, timestep, ["block.0"], lambda map: map)["block.0"] for x in (x_t, other))
        change = (after - before).norm(dim=1).flatten()
        assert divmod(int(change.argmax()), side) == (row, column)


def wrong(what: str, inputs):
    """The inputs of a network with a mistake in them."""

    def mistaken(x_t, timestep):
        given = inputs(x_t, timestep)
        if what == "packing":
            given["hidden_states"] = given["hidden_states"].flip(2)
        elif what == "shift":
            given["timestep"] = given["timestep"] * 0.9
        elif what != "affine":
            given[what] = given[what] + 1
        return given

    return mistaken


@pytest.mark.parametrize("what", ["shift", "guidance", "img_ids", "packing", "pooled_projections", "affine"])
@torch.no_grad()
def test_a_mistake_in_what_the_network_is_given_would_be_seen(what, tmp_path):
    name = "FluxPipeline guidance-distilled"
    FOLDERS[name](tmp_path)
    backbone = load_backbone(str(tmp_path), settings_of(name))
    compare(backbone, tmp_path, name)
    backbone.inputs = wrong(what, backbone.inputs)
    if what == "affine":
        backbone.encoder = replace(backbone.encoder, scale=1.1 * backbone.encoder.scale)
    with pytest.raises(AssertionError, match="no row"):
        compare(backbone, tmp_path, name)


@pytest.mark.parametrize("name", classes(but=set(FOLDERS) - set(REFUSED), always=QUICKLY))
def test_what_cannot_be_run_as_it_was_trained_is_refused(name: str, tmp_path):
    FOLDERS[name](tmp_path)
    with pytest.raises(ValueError, match=REFUSED[name]):
        load_backbone(str(tmp_path), settings_of(name))


SIDES = {"HiDreamImagePipeline": 0, "CogView4Pipeline": 32}
"""Sides of images: 0 for a pipeline that always makes its own, and one with more tokens than its text."""


STEPS = {"StableDiffusionXLPipeline EDM": NUM_STEPS, "ConsistencyModelPipeline": 40}
"""Lengths of EDM's schedule that have the noise levels of the pipeline's own run."""


def settings_of(name: str) -> Settings:
    side = SIDES.get(name, arguments(name).get("height", 0))
    return Settings(image_size=side, num_steps=STEPS.get(name, Settings.num_steps))


def latents_of(backbone, decoded):
    """x, such that the pipeline decodes it as it decoded its own."""
    encoder = getattr(backbone.encoder, "encoder", backbone.encoder)
    return encoder.scaled(decoded) if hasattr(encoder, "scaled") else decoded


class Recorder:
    """Keeps what the blocks of a network return, for every call of it."""

    def __init__(self, network, modules):
        self.calls: list[dict[str, list[torch.Tensor]]] = []
        self.num_rows = 1
        self.hooks = [network.register_forward_pre_hook(self.begin, with_kwargs=True)]
        self.hooks += [network.get_submodule(name).register_forward_hook(self.keep(name)) for name in modules]

    def begin(self, module, args, kwargs):
        self.num_rows = len(
            next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor | list))
        )
        self.calls.append({})

    def keep(self, name):
        def hook(module, args, output):
            self.calls[-1].setdefault(name, tensors(output))

        return hook

    def remove(self):
        for hook in self.hooks:
            hook.remove()

    def rows(self) -> list[dict[str, list[torch.Tensor]]]:
        """What the calls returned, for each row of their batches."""
        return [
            {name: [row_of(leaf, row, self.num_rows) for leaf in leaves] for name, leaves in call.items()}
            for call in self.calls
            for row in range(self.num_rows)
        ]


def row_of(leaf, row, num_rows):
    """One image of [N, ...], or of tokens [T, N, C]."""
    return leaf[row] if len(leaf) == num_rows else leaf[:, row]


def tensors(output):
    return [leaf.clone() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def close(mine, theirs) -> bool:
    assert mine.keys() == theirs.keys()
    return all(
        one.shape == other.shape and (one - other).abs().max() <= 1e-3 * other.abs().max()
        for name in mine
        for one, other in zip(mine[name], theirs[name], strict=True)
    )


def load_pipeline(folder):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline, name, **options):
    taken = inspect.signature(pipeline.__call__).parameters
    call = {"prompt": "a", "num_inference_steps": 2, "generator": torch.manual_seed(0), "strength": 1.0}
    call |= arguments(name) | options
    if side := SIDES.get(name):
        call |= {"height": side, "width": side}
    if "guidance_schedule" in call:
        call["guidance_schedule"] = call["guidance_schedule"][:1] * call["num_inference_steps"]
    if name == "KandinskyV22Pipeline":  # there is no text encoder in its folder
        call |= {key: torch.zeros_like(call[key]) for key in ("image_embeds", "negative_image_embeds")}
    if name == "FluxKontextPipeline":  # runs without an image to edit
        del call["image"]
    if "negative_prompt" in call:
        call["negative_prompt"] = ""
    return pipeline(**{key: value for key, value in call.items() if value is not None and key in taken})


class Step(NamedTuple):
    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


def record(pipeline, name, modules, prompt="a"):
    """Samples with a scheduler that leaves latents as they are. Returns, for each step, the timestep, the factor by
    which the scheduler scales latents for the network, and the rows that the network computed; what the VAE was given;
    and the scheduler's sigmas. The rows are those of any prompt where the pipeline has one without, and otherwise
    those of the empty prompt."""
    network = next(getattr(pipeline, part) for part in ("transformer", "unet", "decoder") if hasattr(pipeline, part))
    recorder, scheduler, steps, decoded = Recorder(network, modules), pipeline.scheduler, [], []
    signature = inspect.signature(scheduler.step)

    def step(*args, **kwargs):
        bound = signature.bind(*args, **kwargs).arguments
        sample, timestep = bound["sample"], bound["timestep"]
        scale = scheduler.scale_model_input(torch.ones(1), timestep) if hasattr(scheduler, "scale_model_input") else 1
        steps.append((float(timestep), float(scale), recorder.rows()))
        recorder.calls.clear()
        if hasattr(scheduler, "_step_index") and scheduler._step_index is not None:
            scheduler._step_index += 1
        decoded[:] = [sample.clone()]
        return Step(sample, sample)

    def decode(latents, *args, **kwargs):
        decoded[:] = [latents.clone()]
        return original(latents, *args, **kwargs)

    step.__signature__ = signature
    scheduler.step = step
    if vae := next(
        (getattr(pipeline, part) for part in ("vae", "movq", "vqvae") if getattr(pipeline, part, None)), None
    ):
        original, vae.decode = vae.decode, decode
    run(pipeline, name, num_inference_steps=NUM_STEPS, prompt=prompt)
    if prompt and len(steps[-1][2]) == 1:
        return record(load_pipeline(pipeline.name_or_path), name, modules, "")
    sigmas = getattr(scheduler, "sigmas", [0.0] * NUM_STEPS)
    return steps[-NUM_STEPS:], decoded[0], sigmas[:NUM_STEPS]


@torch.no_grad()
def test_a_mistake_in_the_scale_or_the_time_of_edm_would_be_seen(tmp_path):
    name = "StableDiffusionXLPipeline EDM"
    FOLDERS[name](tmp_path)
    backbone = load_backbone(str(tmp_path), settings_of(name))
    inputs = backbone.inputs
    for argument in ("sample", "timestep"):
        backbone.inputs = lambda x_t, step, at=argument: {**inputs(x_t, step), at: 1.1 * inputs(x_t, step)[at]}
        with pytest.raises(AssertionError, match="no row"):
            compare(backbone, tmp_path, name)
