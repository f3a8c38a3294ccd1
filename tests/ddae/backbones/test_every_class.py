"""Every image denoiser class of diffusers, in a folder laid out as the published one."""

import inspect
import re

import numpy as np
import pytest
import torch

from tests.ddae.backbones.every_class import FOLDERS, NOT_BUILT, PIPELINES, arguments, loading


def test_every_denoiser_of_images_that_diffusers_exports_has_a_folder():
    import diffusers

    exported = {name for name in dir(diffusers) if re.search(r"(2D\w*Model|UNet|UNetModel)$", name)}
    parts = [part for tiny in PIPELINES.values() for part in tiny.components.values()]
    built = {part[0] for part in parts if isinstance(part, tuple)}
    assert {name for name in exported if "ControlNet" not in name} <= built | set(NOT_BUILT)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_folder_is_one_that_its_pipeline_runs(name: str, tmp_path):
    from diffusers import DiffusionPipeline

    if name.startswith("PRX"):
        pytest.importorskip("ftfy")
    FOLDERS[name](tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, **loading(name))
    pipeline.set_progress_bar_config(disable=True)
    call = {"prompt": "a", "num_inference_steps": 2, "output_type": "np", "generator": torch.manual_seed(0)}
    call |= arguments(name)
    taken = inspect.signature(pipeline.__call__).parameters
    images = pipeline(**{key: value for key, value in call.items() if value is not None and key in taken})[0]
    image = np.asarray(images[0])
    assert np.isfinite(image).all() and image.std() > 0
