"""Every kind of diffusion on every network, from the flags to the features of what was saved."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddae.backbones import load_backbone
from ddae.datasets import load_images
from ddae.pretrain import save
from ddae.pretraining.augmentation import augment, draw_parameters, rotation
from ddae.pretraining.frameworks import FRAMEWORKS
from ddae.pretraining.latents import open_encoder
from ddae.pretraining.networks import NETWORKS
from sweeps.cluster.loop import run_loop
from sweeps.cluster.train import FileCheckpoint
from sweeps.pretrain import Pretrain
from sweeps.pretraining import estimate, set_up, train

SMALL = {"dataset": "digits", "channels": (8, 16), "batch_size": 8, "steps": 3, "autocast": False, "warmup": 1}
TINY_DIT = {"hidden_size": 64, "depth": 2, "channels": Pretrain.channels}
DDPM_SIGMA = {(1000, 1e-4, 0.02): (0.01, 157.4), (64, 1e-4, 0.02): (0.01, 0.954), (1000, 0.01005, 0.02): (0.1008, 1940)}
"""sigma at the first and last timestep, by T and betas, as computed by hand for DDAE's section 4.1.1."""


KINDS, DENOISERS = ("ddpm", "edm", "flow"), ("unet", "ddpm++", "dit")
assert {*KINDS, "vae"} == FRAMEWORKS.keys() and {*DENOISERS, "vae"} == NETWORKS.keys()


def trained(tmp_path, name="net", **flags):
    sizes = TINY_DIT if flags.get("network") == "dit" else {}
    training = set_up(Pretrain(**{**SMALL, **sizes, **flags}, out=tmp_path / name))
    losses = run_loop(training, FileCheckpoint(tmp_path / name / "checkpoint.pt"), torch.device("cpu")).losses
    return training, losses


def saved(training, folder):
    save(training.averaged(), training.scheduler, folder)
    return load_backbone(str(folder))


def level_of(backbone, family, timestep, num_levels):
    return {"ddpm": timestep, "edm": backbone.sigma(timestep), "flow": timestep / num_levels}[family]


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("network", DENOISERS)
def test_what_is_trained_is_what_is_loaded(tmp_path, family, network):
    training, losses = trained(tmp_path, family=family, network=network)
    assert np.isfinite(losses).all()
    backbone = saved(training, tmp_path / "model")
    x0 = backbone.encode(training.images.read(np.arange(2)))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    first, middle = backbone.schedule.timesteps[0], backbone.schedule.timesteps[len(backbone.schedule.timesteps) // 2]
    maps = backbone.activations(x0, noise, middle, [block.name for block in backbone.blocks])
    assert all(map.isfinite().all() and map.std() > 0 for map in maps.values())
    for timestep in (first, middle, backbone.schedule.timesteps[-1]):
        told = []
        dtype = torch.long if family == "ddpm" else torch.float32
        level = torch.full((2,), level_of(backbone, family, timestep, 1000), dtype=dtype)
        FRAMEWORKS[family].loss(lambda x, time: told.append((x, time)) or x, training.scheduler, x0, level, noise)  # noqa: B023
        given = backbone.inputs(backbone.noised(x0, noise, timestep), timestep)
        x = given["hidden_states" if network == "dit" else "sample"]
        assert torch.allclose(x, told[0][0], atol=1e-4)
        assert torch.allclose(given["timestep"].float(), told[0][1].float(), atol=1e-4)


@pytest.mark.parametrize(("num_levels", "low", "high"), DDPM_SIGMA)
@pytest.mark.parametrize("network", DENOISERS)
def test_the_schedule_of_a_folder_is_the_one_that_was_trained(tmp_path, network, num_levels, low, high):
    training, _ = trained(tmp_path, network=network, num_levels=num_levels, beta_range=(low, high))
    backbone = saved(training, tmp_path / "model")
    first, last = DDPM_SIGMA[num_levels, low, high]
    assert len(backbone.schedule.timesteps) == num_levels
    assert backbone.sigma(0) == pytest.approx(first, rel=1e-2)
    assert backbone.sigma(num_levels - 1) == pytest.approx(last, rel=1e-2)


@pytest.mark.parametrize("network", DENOISERS)
def test_a_flow_counts_its_time_in_its_own_levels(tmp_path, network):
    training, _ = trained(tmp_path, family="flow", network=network, num_levels=50)
    backbone = saved(training, tmp_path / "model")
    assert backbone.schedule.timesteps == range(1, 50) and backbone.sigma(25) == pytest.approx(1)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("network", DENOISERS)
def test_a_class_conditional_network_is_read_with_its_null_class(tmp_path, family, network):
    training, _ = trained(tmp_path, family=family, network=network, class_conditional=True, steps=30, ema_decay=0.5)
    backbone = saved(training, tmp_path / "model")
    x0 = backbone.encode(training.images.read(np.arange(4)))
    timestep = backbone.schedule.timesteps[len(backbone.schedule.timesteps) // 3]
    x_t = backbone.noised(x0, torch.zeros_like(x0), timestep)
    given = backbone.inputs(x_t, timestep)
    x, time = given["hidden_states" if network == "dit" else "sample"], given["timestep"]
    predict = NETWORKS[network].predict
    with torch.no_grad():
        null, some = (predict(backbone.network, torch.full((4,), label), None, x, time) for label in (10, 3))
        called = backbone.network(**given).sample
    assert torch.equal(called, null) and not torch.allclose(null, some, atol=1e-6)


def test_a_file_that_does_not_name_its_null_class_is_refused(tmp_path):
    training, _ = trained(tmp_path, class_conditional=True)
    network = training.averaged()
    network.register_to_config(null_class=None)
    save(network, training.scheduler, tmp_path / "model")
    with pytest.raises(ValueError, match="does not say which is for no class"):
        load_backbone(str(tmp_path / "model"))


def test_a_tenth_of_the_classes_is_kept_from_the_network(tmp_path):
    training, _ = trained(tmp_path, class_conditional=True, batch_size=4000, steps=1)
    labels, rows = training.batch(0).labels, training.images.labels[: training.images.num_train]
    assert float((labels == 10).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert set(np.unique(labels)) == {*np.unique(rows), 10}


@pytest.mark.parametrize("family", KINDS)
def test_augmentation_is_a_condition_that_can_be_left_out(tmp_path, family):
    training, _ = trained(tmp_path, family=family, network="ddpm++", augment=0.5, steps=20, ema_decay=0.5)
    backbone = saved(training, tmp_path / "model")
    x, time = torch.randn(2, 1, 8, 8), torch.ones(2)
    with torch.no_grad():
        without = backbone.network(x, time).sample
        zeros = backbone.network(x, time, augment_labels=torch.zeros(2, 9)).sample
        turned = backbone.network(x, time, augment_labels=torch.ones(2, 9)).sample
    assert torch.equal(without, zeros) and not torch.allclose(without, turned, atol=1e-6)


def test_augmentation_does_what_its_parameters_say():
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 3, 5] = 1.0

    def changed(**at):
        parameters = torch.zeros(1, 9)
        for place, value in at.items():
            parameters[0, int(place[1:])] = value
        return augment(image, parameters)

    assert torch.equal(changed(), image)
    assert torch.equal(changed(p0=1), image.flip(-1)) and torch.equal(changed(p1=1), image.flip(-2))
    assert torch.allclose(changed(p7=1), image.roll(2, -1), atol=1e-5)  # an eighth of 16 to the right
    assert torch.allclose(changed(p8=1), image.roll(2, -2), atol=1e-5)
    quarter = changed(p3=-1, p4=1)  # cosine 0, sine 1
    assert torch.allclose(quarter, image.rot90(-1, (-2, -1)), atol=1e-5)
    disc = (torch.hypot(*torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="xy")) < 0.5).float()[None, None]
    larger = augment(disc, torch.eye(9)[2:3] * 2)  # 2^0.4 times the size
    assert float(larger.sum() / disc.sum()) == pytest.approx(2**0.8, rel=0.05)
    along_x = augment(disc, torch.eye(9)[5:6] * 2)[0, 0]
    assert float(along_x[32].sum() / disc[0, 0, 32].sum()) == pytest.approx(2**0.4, rel=0.1)
    assert float(along_x.sum() / disc.sum()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("probability", [0.0, 0.12, 1.0])
def test_each_change_is_made_with_its_probability(probability):
    parameters = draw_parameters(20_000, probability, torch.Generator().manual_seed(0))
    changed = parameters.ne(0).float().mean(0)
    assert float(changed[0]) == pytest.approx(0.5, abs=0.02)
    assert float(changed[1]) == pytest.approx(probability / 2, abs=0.02)
    assert changed[2:].numpy() == pytest.approx(probability, abs=0.02)
    cos, sin = parameters[:, 3] + 1, parameters[:, 4]
    assert torch.allclose(cos**2 + sin**2, torch.ones(()), atol=1e-5)
    assert rotation(torch.zeros(1)).equal(torch.eye(2)[None])


def test_dropout_reaches_every_residual_block(tmp_path):
    for network in ("unet", "ddpm++"):
        training, _ = trained(tmp_path, network, network=network, dropout=0.25)
        rates = {module.p for module in training.network.modules() if isinstance(module, torch.nn.Dropout)}
        with_convolutions = [module.dropout.p for module in training.network.modules() if hasattr(module, "conv2")]
        assert set(with_convolutions) == {0.25} and 0.25 in rates


RANDOM = {"flip": True, "augment": 0.5, "network": "ddpm++", "class_conditional": True, "dropout": 0.1}


def test_a_training_with_all_that_is_drawn_goes_on_with_the_same_numbers(tmp_path):
    whole, losses = trained(tmp_path, "whole", **RANDOM, steps=6, accumulate=2)
    parts = set_up(Pretrain(**{**SMALL, **RANDOM, "steps": 6}, accumulate=2, out=tmp_path / "parts"))
    checkpoint = FileCheckpoint(tmp_path / "parts" / "checkpoint.pt")
    run_loop(parts, checkpoint, torch.device("cpu"), stop=3)
    again = set_up(Pretrain(**{**SMALL, **RANDOM, "steps": 6}, accumulate=2, out=tmp_path / "parts"))
    assert run_loop(again, checkpoint, torch.device("cpu")).losses == losses
    save(whole.averaged(), whole.scheduler, tmp_path / "a")
    save(again.averaged(), again.scheduler, tmp_path / "b")
    a, b = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", KINDS)
def test_parts_and_processes_change_the_last_digits_alone(tmp_path, family):
    flags = {"family": family, "network": "ddpm++", "flip": True, "augment": 0.5, "class_conditional": True}
    _, whole = trained(tmp_path, "whole", **flags)
    _, parts = trained(tmp_path, "parts", **flags, accumulate=4)
    assert parts == pytest.approx(whole, rel=1e-4)
    training, _ = trained(tmp_path, "shares", **flags)
    all_of_it = training.batch(1)
    for rank in range(2):
        training.rank, training.world_size = rank, 2
        mine = training.batch(1)
        for name in ("x0", "levels", "noise", "labels", "augmentation"):
            assert torch.allclose(getattr(mine, name), getattr(all_of_it, name)[rank::2], atol=1e-6)


def test_the_learning_rate_follows_its_flags(tmp_path):
    flags = {**SMALL, "steps": 100, "warmup": 10}
    cosine = set_up(Pretrain(**flags, out=tmp_path))
    constant = set_up(Pretrain(**flags, decay="none", out=tmp_path))
    assert [cosine.schedule(step) for step in (0, 9, 10)] == pytest.approx([0.1, 1, 1])
    assert cosine.schedule(99) < 0.001 and constant.schedule(99) == 1


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """(folder, losses) of a small autoencoder of the digits, 4 x 4 latents."""
    folder = tmp_path_factory.mktemp("vae")
    flags = {"family": "vae", "channels": (16, 32), "steps": 150, "batch_size": 32, "learning_rate": 3e-3}
    training, losses = trained(folder, **flags, warmup=10)
    training.save(folder / "model")
    return folder / "model", losses


def test_an_autoencoder_learns_and_has_latents_of_variance_1(vae):
    folder, losses = vae
    assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:5])
    images = load_images("digits", 8)
    latents = open_encoder(folder, 8, "cpu")(images.read(np.arange(images.num_train)))
    assert latents.shape[1:] == (4, 4, 4) and float(latents.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("network", DENOISERS)
def test_a_network_on_latents_is_a_folder_with_its_vae(tmp_path, vae, family, network):
    folder, _ = vae
    training, losses = trained_on_latents(tmp_path, folder, family=family, network=network)
    assert np.isfinite(losses).all()
    training.save(tmp_path / "model")
    backbone = load_backbone(str(tmp_path / "model"))
    assert backbone.image_size == 8 and backbone.encoder.shape == (4, 4, 4)
    rows = np.arange(3)
    x0 = backbone.encode(training.images.read(rows))
    assert torch.allclose(x0, training.latents.read(rows), atol=2e-2)  # the folder's is in half precision
    middle = backbone.schedule.timesteps[len(backbone.schedule.timesteps) // 2]
    maps = backbone.activations(x0, torch.randn(x0.shape), middle, [block.name for block in backbone.blocks])
    assert all(map.isfinite().all() and map.std() > 0 for map in maps.values())


def trained_on_latents(tmp_path, folder, name="net", **flags):
    sizes = TINY_DIT if flags.get("network") == "dit" else {}
    config = Pretrain(**{**SMALL, **sizes, **flags}, latents=folder, out=tmp_path / name)
    training = set_up(config)
    return training, train(config, training).losses


def test_latents_are_encoded_once_and_mirrored_where_images_are(tmp_path, vae):
    training, _ = trained_on_latents(tmp_path, vae[0], flip=True)
    [file] = tmp_path.glob("latents-*.npy")
    images, encoder = training.images, open_encoder(vae[0], 8, "cpu")
    for view, pixels in enumerate((images.read(np.arange(4)), images.read(np.arange(4)).flip(-1))):
        kept = training.latents.read(np.arange(4), torch.full((4,), float(view)))
        assert torch.allclose(kept, encoder(pixels), atol=1e-5)
    written = file.stat().st_mtime_ns
    trained_on_latents(tmp_path, vae[0], "other", flip=True, family="flow")
    assert file.stat().st_mtime_ns == written


def test_a_folder_that_is_no_vae_is_refused(tmp_path, vae):
    training, _ = trained(tmp_path)
    training.save(tmp_path / "unet")
    for folder, message in (
        (tmp_path / "unet", "the only supported VAE is AutoencoderKL"),
        (tmp_path / "nowhere", "nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            set_up(Pretrain(**SMALL, latents=folder, out=tmp_path / "out"))
    with pytest.raises(ValueError, match=r"augment=0\.1 is for pixels"):
        set_up(Pretrain(**SMALL, latents=vae[0], network="ddpm++", augment=0.1, out=tmp_path / "out"))


@pytest.mark.parametrize("flags", [{}, {"family": "flow", "network": "dit", **TINY_DIT}, {"family": "vae"}])
def test_a_dry_run_says_what_it_costs_and_leaves_nothing(tmp_path, vae, flags):
    latents = {"latents": vae[0]} if flags.get("network") == "dit" else {}
    config = Pretrain(**{**SMALL, **flags}, **latents, snapshot_every=1, out=tmp_path / "out", dry_run=True)
    training = set_up(config)
    said = estimate(config, training)
    num = sum(each.numel() for each in training.network.parameters())
    assert f"{num / 1e6:.2f}M parameters" in said and "3 snapshots" in said
    assert [line.split()[0] for line in said.splitlines()] == ["flags", "network", "speed", "in", "memory"]
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_snapshots_of_another_recipe_are_refused(tmp_path):
    config = Pretrain(**SMALL, snapshot_every=2, out=tmp_path)
    train(config, set_up(config))
    (tmp_path / "checkpoint.pt").unlink()
    set_up(config)
    with pytest.raises(
        ValueError, match=r"snapshots in .* other settings \(steps=3 and not 4, flip=the default and not True"
    ):
        set_up(dataclasses.replace(config, steps=4, flip=True))


def test_classes_are_asked_of_a_set_that_has_none(tmp_path):
    (tmp_path / "set" / "all").mkdir(parents=True)
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / "all" / f"{number}.png")
    flags = {**SMALL, "dataset": str(tmp_path / "set"), "image_size": 8}
    set_up(Pretrain(**flags, out=tmp_path / "out"))
    with pytest.raises(ValueError, match=r"class_conditional=True: .* has 1 class; give a set with classes"):
        set_up(Pretrain(**flags, class_conditional=True, out=tmp_path / "out"))


def test_a_loss_that_is_no_number_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"the loss is not a number at step [0-9]+; lower the learning rate"):
        trained(tmp_path, learning_rate=1e3, max_gradient_norm=float("inf"), steps=60)


def test_the_share_of_waiting_for_data_is_known_after_a_rerun(tmp_path):
    training, _ = trained(tmp_path)
    assert training.data_seconds > 0
    again, _ = trained(tmp_path)
    assert again.data_seconds == training.data_seconds
