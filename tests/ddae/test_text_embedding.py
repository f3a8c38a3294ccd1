from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ddae.backbones import Backbone, Settings, load_backbone
from ddae.datasets import load_dataset
from ddae.noise import image_noise
from ddae.pooling import pool
from ddae.text_embedding import Encoded, TextProbe, TextRecipe, TextTraining, encode_split
from sweeps.cluster.train import run_loop

RECIPE = TextRecipe(num_epochs=3, batch_size=8, head_rate=1e-2, text_rate=1e-1)
FROZEN = replace(RECIPE, text_rate=0.0)


@pytest.fixture(scope="module")
def backbone(tiny_stable_diffusion) -> Backbone:
    return load_backbone(tiny_stable_diffusion)


def random_split(num_images: int, seed: int) -> Encoded:
    """Latents that say nothing about their labels: what is learned of them is learned by heart."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (num_images,), generator=rng)
    return Encoded(np.arange(num_images), torch.randn(num_images, 4, 8, 8, generator=rng), labels)


TRAIN, VAL = random_split(32, 0), random_split(20, 1)
SPLITS = {"train": TRAIN, "val": VAL}


def start(backbone: Backbone, recipe: TextRecipe = RECIPE, alias: str = "b18", pooling: int = 1) -> TextTraining:
    [block] = [block for block in backbone.blocks if block.alias == alias]
    return TextTraining(TextProbe(backbone, block, 0, pooling, 10, recipe.seed), recipe, 32, SPLITS.__getitem__)


class Memory:
    """A checkpoint."""

    def __init__(self):
        self.state = None

    def load(self):
        return self.state

    def save(self, state):
        self.state = state


def finish(training: TextTraining, checkpoint=None, **more) -> list[float]:
    return run_loop(training, checkpoint or Memory(), torch.device("cpu"), **more).losses


@pytest.mark.slow
def test_a_learned_text_fits_better_than_the_null_text_in_the_same_steps(backbone):
    frozen, learned = (
        finish(start(backbone, replace(recipe, num_epochs=30, batch_size=32))) for recipe in (FROZEN, RECIPE)
    )
    assert len(frozen) == len(learned) == 30
    assert frozen[0] == learned[0]
    assert learned[-1] < 0.97 * frozen[-1] < 0.97 * frozen[0]


def test_only_head_and_text_are_trained(backbone):
    before = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    training = start(backbone)
    null = backbone.inputs.text.clone()
    finish(training)
    assert training.probe.text.grad.abs().sum(1).min() > 0
    assert all(parameter.grad is None for parameter in backbone.network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.network.state_dict().items())
    assert [name for name, _ in training.probe.named_parameters()] == ["text", "head.1.weight", "head.1.bias"]
    assert torch.equal(backbone.inputs.text, null) and not torch.equal(training.best_text, null)


def test_without_a_rate_the_text_stays(backbone):
    training = start(backbone, FROZEN)
    losses = finish(training)
    assert len(losses) == 3 * 4
    assert training.probe.text.grad is None
    assert torch.equal(training.best_text, backbone.inputs.text)


def test_the_best_epoch_on_val_is_kept(backbone):
    training = start(backbone, replace(RECIPE, num_epochs=6))
    texts = []

    def keep(progress):
        if progress.metrics:
            assert progress.metrics == {"val_accuracy": training.val_accuracies[-1]}
            texts.append(training.probe.text.detach().clone())

    finish(training, on_progress=keep)
    assert len(texts) == 6
    best = training.val_accuracies.index(max(training.val_accuracies))
    assert torch.equal(training.best_text, texts[best])
    assert not any(torch.equal(training.best_text, text) for text in texts[:best] + texts[best + 1 :])


def test_training_goes_on_where_it_stopped(backbone):
    whole, first, second = (start(backbone) for _ in range(3))
    whole_losses = finish(whole)
    kept = Memory()
    finish(first, kept, stop=6, every_steps=4)  # the second epoch is cut short
    assert len(first.val_accuracies) == 1
    assert finish(second, kept) == whole_losses
    assert torch.equal(whole.probe.text, second.probe.text)
    assert torch.equal(whole.best_text, second.best_text)
    assert whole.val_accuracies == second.val_accuracies


def test_a_file_of_the_text_gives_the_features_it_was_learned_with(backbone, tiny_stable_diffusion, tmp_path):
    training = start(backbone)
    finish(training)
    save_file({"text": training.probe.text.detach()}, tmp_path / "text.safetensors")
    settings = Settings(text_embedding=str(tmp_path / "text.safetensors"))
    loaded = load_backbone(tiny_stable_diffusion, settings)
    noise = image_noise(TRAIN.rows, (4, 8, 8), 150, 0)
    null, learned, read = (
        each.activations(TRAIN.x0, noise, 150, ["up.1.1"])["up.1.1"]
        for each in (backbone, training.probe.backbone, loaded)
    )
    assert torch.allclose(learned, read, rtol=1e-5, atol=1e-6) and not torch.allclose(null, read, rtol=1e-3)
    assert loaded.fingerprint != backbone.fingerprint


def test_a_head_reads_the_pooled_map_of_its_block(backbone):
    training = start(backbone, alias="b25", pooling=4)
    noise = image_noise(TRAIN.rows, (4, 8, 8), 0, seed=0)
    with torch.no_grad():
        scores = training.probe.eval()(TRAIN.x0, noise)
    map = backbone.activations(TRAIN.x0, noise, 0, ["up.3.2"])["up.3.2"]
    torch.testing.assert_close(scores, training.probe.head(pool(map, 4).flatten(1)))


def test_lower_precision_has_gradients(tiny_stable_diffusion):
    training = start(load_backbone(tiny_stable_diffusion, Settings(precision="bfloat16")))
    assert np.isfinite(finish(training)).all()
    assert training.probe.text.grad.dtype == torch.float32 and training.probe.text.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="precision='float16' is too coarse for gradients"):
        start(load_backbone(tiny_stable_diffusion, Settings(precision="float16")))


def test_what_no_text_can_be_learned_for(backbone, tiny_model):
    with pytest.raises(ValueError, match="a UNet2DModel takes no text embedding; give a StableDiffusionPipeline"):
        TextProbe(load_backbone(tiny_model), backbone.blocks[0], 0, 1, 10, seed=0)
    with pytest.raises(ValueError, match="block='in' does not depend on the text"):
        finish(start(backbone, alias="b1"))


def test_a_split_is_encoded_once_in_its_own_order(backbone):
    dataset = load_dataset("digits", 64)
    few = replace(dataset, splits={split: rows[:70] for split, rows in dataset.splits.items()})
    encoded = encode_split(backbone, few, "val")
    assert encoded.x0.shape == (70, 4, 8, 8)
    rows = few.splits["val"]
    assert encoded.labels.tolist() == dataset.images.labels[rows].tolist()
    torch.testing.assert_close(encoded.x0[65:], backbone.encode(dataset.images.read(rows[65:])))
