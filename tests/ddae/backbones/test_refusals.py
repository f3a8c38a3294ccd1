"""Files of a pipeline's folder that are no files of one: each is one line that names the file and what is wrong."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ddae.backbones import Settings, load_backbone
from tests.ddae.backbones.every_class import FOLDERS, rewrite
from tests.ddae.backbones.test_every_class import settings_of
from tests.ddae.backbones.test_null_text import NOT_PLAIN

KINDS = "FluxPipeline", "StableDiffusionPipeline", "DDPMPipeline", "DiTPipeline", "LDMPipeline"
OPTIONS = "model_index.json", "config.json", "scheduler_config.json"

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / request.param
    FOLDERS[request.param](folder)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as raised:
        load_backbone(str(folder), Settings(image_size=settings_of("FluxPipeline").image_size))
    return str(raised.value)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"config"'])
def test_options_that_are_no_mapping(whole, content, tmp_path):
    for file in (path.relative_to(whole) for name in OPTIONS for path in whole.rglob(name)):
        shutil.copytree(whole, tmp_path / file.parent / "model")
        path = tmp_path / file.parent / "model" / file
        path.write_text(content)
        kind = type(json.loads(content)).__name__
        assert f"{path} must be a mapping of options to values, not {kind}" in refusal(tmp_path / file.parent / "model")


def test_folders_without_weights(whole, tmp_path):
    for number, config in enumerate(whole.rglob("config.json")):
        shutil.copytree(whole, tmp_path / str(number))
        part = tmp_path / str(number) / config.parent.name
        for file in part.glob("*.safetensors"):
            file.unlink()
        assert re.search(rf"{part} has no weights; looked for \S+model.safetensors, ", refusal(tmp_path / str(number)))


def test_a_scheduler_of_several_classes(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "model")
    rewrite(tmp_path / "model" / "scheduler" / "scheduler_config.json", "_class_name", ["DDPMScheduler"])
    assert "is a ['DDPMScheduler'], which is no scheduler of diffusers" in refusal(tmp_path / "model")


@pytest.mark.parametrize("name", ["FluxPipeline", "QwenImagePipeline", "CogView4Pipeline"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("DPMSolverMultistepScheduler", FLOW),
        ("DEISMultistepScheduler", FLOW),
        ("SASolverScheduler", FLOW),
        ("FlowMatchHeunDiscreteScheduler", {}),
        ("DDPMScheduler", {}),
    ],
)
def test_a_scheduler_that_the_pipeline_does_not_run_with(name, kind, options, tmp_path):
    FOLDERS[name](tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": kind, **options}))
    with pytest.raises(ValueError) as raised:
        load_backbone(str(tmp_path), settings_of(name))
    expected = (
        f"{name} does not run with the {kind} of {tmp_path}; give the scheduler_config.json that it was published"
    )
    assert f"{expected} with (FlowMatchEulerDiscreteScheduler)" in str(raised.value)
    assert not NOT_PLAIN.search(str(raised.value))


@pytest.mark.parametrize("name", ["PixArtAlphaPipeline", "StableDiffusion3Pipeline", "SanaPipeline", "DiTPipeline"])
def test_a_square_size_may_be_a_list(name, tmp_path):
    part = "transformer/config.json"
    FOLDERS[name](tmp_path)
    side = json.loads((tmp_path / part).read_text())["sample_size"]
    expected = load_backbone(str(tmp_path), settings_of(name))
    rewrite(tmp_path / part, "sample_size", [side, side])
    assert load_backbone(str(tmp_path), settings_of(name)).blocks == expected.blocks
    rewrite(tmp_path / part, "sample_size", [side, 2 * side])
    with pytest.raises(ValueError, match=r"sample_size|cannot be loaded as a"):
        load_backbone(str(tmp_path), settings_of(name))
