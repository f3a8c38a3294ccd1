"""The flags of a training and the recipes that set them: what they allow, and what they come to."""

import dataclasses

import pytest
import torch

from ddae.pretraining.networks import NETWORKS
from sweeps import cli
from sweeps.pretrain import Pretrain
from sweeps.pretraining import recipe_of, set_up
from sweeps.pretraining.setup import check, network_of, shape_of
from sweeps.recipes import RECIPES

SMALL = {"dataset": "digits", "channels": (8, 16), "batch_size": 8, "steps": 3, "autocast": False, "warmup": 1}

REFUSED = [
    ({"family": "vae", "dropout": 0.1}, "--dropout 0.1 is for network unet, ddpm++ or dit, and this trains vae"),
    ({"family": "vae", "class_conditional": True}, "--class-conditional is for network"),
    ({"family": "vae", "network": "unet"}, "--network unet is for kinds of diffusion, and this trains a vae"),
    ({"latent_channels": 8}, "--latent-channels 8 is for network vae, and this trains unet"),
    ({"num_levels": 1}, "num_levels=1 is no schedule; give 2 or more"),
    ({"beta_range": (0.02, 1e-4)}, "beta_range=0.02 0.0001 must grow within 0 and 1"),
    ({"beta_range": (0.0, 0.02)}, "beta_range=0 0.02 must grow"),
    ({"beta_range": (1e-4, 1.0)}, "beta_range=0.0001 1 must grow"),
    ({"family": "edm", "num_levels": 64}, "--num-levels 64 is for family ddpm or flow, and this trains edm"),
    ({"family": "flow", "beta_range": (0.01, 0.02)}, "--beta-range 0.01 0.02 is for family ddpm, and this trains flow"),
    ({"depth": 3}, "--depth 3 is for network dit, and this trains unet; leave it out"),
    ({"augment": 0.1}, "--augment 0.1 is for network ddpm++, and this trains unet"),
    ({"network": "dit"}, "--channels 8 16 is for network unet, ddpm++ or vae, and this trains dit"),
    ({"network": "dit", "channels": Pretrain.channels, "hidden_size": 100}, "hidden_size=100 must be a multiple of 64"),
    ({"network": "dit", "channels": Pretrain.channels, "patch_size": 3}, "patch_size=3 does not divide the side of 8"),
    ({"channels": (8,) * 5}, "cannot be halved 4 times"),
    ({"attention": (5,)}, "attention=5 is no side of a map; those are 8, 4"),
    ({"dropout": 1.0}, "dropout=1.0 must be 0 or more, and 0.99 at most"),
    ({"augment": 1.5}, "augment=1.5 must be 0 or more, and 1 at most"),
    ({"max_gradient_norm": 0.0}, "max_gradient_norm=0.0 must be"),
    ({"accumulate": 3}, "cannot be shared evenly by accumulate=3 parts"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_flags_that_make_no_sense_are_refused(tmp_path, flags, message):
    with pytest.raises(ValueError) as refused:
        set_up(Pretrain(**{**SMALL, **flags}, out=tmp_path / "out"))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_the_flags_that_are_not_given_leave_a_recipe_as_it_was():
    assert recipe_of(Pretrain()) == recipe_of(Pretrain(network="unet")) and len(recipe_of(Pretrain())) == 10
    for field in dataclasses.fields(Pretrain):
        if field.name in ("dropout", "flip", "warmup"):
            assert field.name in recipe_of(dataclasses.replace(Pretrain(), **{field.name: field.default + 1}))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_defaults_that_flags_override(name):
    config = cli.parse(Pretrain, ["--steps", "7", "--recipe", name], "", RECIPES)
    assert dataclasses.asdict(config) | {"steps": 0, "recipe": ""} == dataclasses.asdict(
        Pretrain(**{**RECIPES[name], "steps": 0})
    )
    assert config.steps == 7
    check(config)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("ddpm-cifar10", 35.7), ("ddpm-tiny-imagenet", 35.7), ("edm-cifar10", 55.7), ("edm-tiny-imagenet", 61.8)],
)
def test_the_networks_of_the_recipes_have_the_sizes_of_the_papers(name, millions):
    config = Pretrain(**RECIPES[name])
    with torch.device("meta"):
        network = NETWORKS[network_of(config)].make(shape_of(config, config.image_size, 3, 10))
    assert sum(each.numel() for each in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_a_recipe_in_a_config_file_is_below_its_other_lines(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("recipe: ddpm-cifar10\ndropout: 0.2\n")
    config = cli.parse(Pretrain, [f"--config={path}", "--batch-size", "4"], "", RECIPES)
    assert (config.dropout, config.batch_size, config.layers_per_block) == (0.2, 4, 2)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match="recipe='ddpm-cifar' is not known; known: ddpm-fashion-mnist"):
        cli.parse(Pretrain, ["--recipe", "ddpm-cifar"], "", RECIPES)
