"""One training of a cut network: on latents, with activations computed again, in several processes, diverging."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ddae.finetune import RECIPES
from storage.checkpoints import StoredCheckpoint
from storage.feature_store import FeatureStore
from sweeps.cluster.loop import run_loop, update
from sweeps.cluster.session import ray_session
from sweeps.finetune import Finetune
from sweeps.finetuning.cost import estimate
from sweeps.finetuning.sweep import set_up
from sweeps.finetuning.task import FinetuneTask
from sweeps.finetuning.training import NUM_LATENT_VIEWS, CellTraining
from tests.ddae.backbones.tiny import dit_folder

CPU = torch.device("cpu")


def make_task(backbone, store, block="mid", **flags) -> FinetuneTask:
    config = Finetune(backbone, "digits", block=block, timestep=10, pooling=2, store=str(store), num_labels=(20,))
    [task] = set_up(replace(config, init=("finetune",), epochs=(2,), batch_size=10, **flags)).tasks
    return task


def gradients(task: FinetuneTask) -> dict[str, torch.Tensor]:
    training = CellTraining(task, task.cells[0])
    training.start(CPU)
    training.loss(training.network, 0).backward()
    return {name: each.grad for name, each in training.trained.items()}


@pytest.mark.parametrize(("model", "block"), [("unet", "up.1.0"), ("dit", "block.0")])
def test_gradient_checkpointing_changes_no_gradient(tiny_model, tmp_path, model, block):
    backbone = tiny_model if model == "unet" else dit_folder(tmp_path, "")
    plain, again = (gradients(make_task(backbone, tmp_path, block, gradient_checkpointing=on)) for on in (False, True))
    assert plain.keys() == again.keys() and all(torch.allclose(plain[n], again[n], atol=1e-6) for n in plain)


def test_a_latent_model_is_trained_on_stored_views(tmp_path):
    task = make_task(dit_folder(tmp_path, ""), tmp_path / "store", "block.0")
    cell = task.cells[0]
    training = CellTraining(task, cell)
    run_loop(training, StoredCheckpoint(tmp_path, "first"), CPU)
    held = FeatureStore(task.source.store)
    views = [view for view in range(1, 20) if not held.missing(task.source.latents("train", view), 20)]
    assert views and max(views) <= NUM_LATENT_VIEWS
    again = CellTraining(task, cell)
    run_loop(again, StoredCheckpoint(tmp_path, "second"), CPU)
    assert again.right == training.right


def test_a_dry_run_encodes_nothing(tmp_path):
    store, backbone = tmp_path / "store", dit_folder(tmp_path, "")
    config = Finetune(backbone, "digits", block="block.0", timestep=10, num_labels=(20,), epochs=(2,), store=str(store))
    assert "images are encoded once" in estimate(set_up(replace(config, scratch_epochs=(2,), head_start=("probe",))))
    assert not list(store.rglob("*.arrow"))


def test_a_rate_that_diverges_counts_as_nothing_right(tiny_model, tmp_path, caplog):
    task = make_task(tiny_model, tmp_path, learning_rates=(1e12,))
    [result] = task.run(task.cells[:1], task.rungs[-1], [StoredCheckpoint(tmp_path, "one")])
    assert result.metrics["val_accuracy"] == 0 and result.params["setting"].endswith("diverged")
    assert "the loss is not a number at step" in caplog.text


@pytest.mark.slow
def test_two_processes_train_one_network(tiny_model, tmp_path):
    """And go on from a checkpoint to the same numbers."""
    task = make_task(tiny_model, tmp_path, num_workers=2, head_start=("fresh",))
    cell, whole, halved = task.cells[0], StoredCheckpoint(tmp_path, "whole"), StoredCheckpoint(tmp_path, "halved")
    assert task.resources(cell, 4).in_processes_of_its_own
    with ray_session():
        undisturbed = task.trained(cell, whole, task.num_steps)
        task.trained(cell, halved, 2)
        resumed = task.trained(cell, halved, task.num_steps)
    assert undisturbed.right == resumed.right
    for name, tensor in undisturbed.trained.items():
        assert torch.equal(tensor, resumed.trained[name]), name
    alone = CellTraining(replace(task, num_workers=1), cell)
    alone.start(CPU)
    for step in range(task.num_steps):
        update(alone, alone.network, step)
    name = "head.weight"
    assert torch.allclose(alone.trained[name], undisturbed.trained[name], atol=1e-3)


def test_every_seed_sees_other_images(tiny_model, tmp_path):
    task = make_task(tiny_model, tmp_path, seed=0)
    one, other = (task.labelled(replace(task.cells[0], seed=seed)) for seed in (0, 1))
    assert len(one) == len(other) == 20 and not np.intersect1d(one, other).size


def test_a_recipe_is_for_one_device():
    assert RECIPES["ddae"].rate(0, 100, 10) == 1 and RECIPES["ddae"].rate(99, 100, 10) < 1e-3
    assert RECIPES["gans"].rate(80, 1000, 10) == pytest.approx(0.1)
