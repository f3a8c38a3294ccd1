"""A training in MLflow: what is there while it runs, after a kill, and where no server answers."""

import logging

import pytest
import torch
from mlflow import MlflowClient

from sweeps import cli, pretrain
from sweeps.cluster.loop import TrainingProgress
from sweeps.pretrain import Pretrain
from sweeps.pretraining import set_up, tracked, tracked_training

SMALL = {"dataset": "digits", "channels": (8, 16), "batch_size": 8, "steps": 6, "checkpoint_every": 2}


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(tracked, "POINT_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    return uri


def runs(uri):
    client = MlflowClient(uri)
    return client, [run for each in client.search_experiments() for run in client.search_runs([each.experiment_id])]


def history(client, run, metric):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def test_curves_samples_and_params_are_there_as_it_runs(uri, tmp_path):
    config = Pretrain(**SMALL, sample_every=3, out=tmp_path / "net")
    pretrain.main(config)
    client, [run] = runs(uri)
    losses = torch.load(tmp_path / "net" / "checkpoint.pt", weights_only=True)["losses"]
    assert run.info.status == "FINISHED" and run.info.run_name == "net"
    assert run.data.params["batch_size"] == "8" and run.data.params["family"] == "ddpm"
    assert dict(history(client, run, "loss"))[5] == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert dict(history(client, run, "learning_rate"))[5] == pytest.approx(1e-3 * 6 / 500)
    assert all(value > 0 for _, value in history(client, run, "images_per_second"))
    assert [file.path for file in client.list_artifacts(run.info.run_id, "samples")] == [
        "samples/step-3.png", "samples/step-6.png",
    ]  # fmt: skip
    assert {"loss.png", "README.md"} <= {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_rerun_goes_on_with_the_same_run(uri, tmp_path, monkeypatch):
    from ddae.pretrain import Pretraining

    config = Pretrain(**SMALL, out=tmp_path / "net")
    loss = Pretraining.loss

    def interrupted(training, network, step):
        if step == 4:
            raise KeyboardInterrupt
        return loss(training, network, step)

    monkeypatch.setattr(Pretraining, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(config)
    client, [run] = runs(uri)
    assert run.info.status == "KILLED"
    monkeypatch.setattr(Pretraining, "loss", loss)
    pretrain.main(config)
    client, [again] = runs(uri)
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    assert {step for step, _ in history(client, again, "loss")} >= {5}


def test_without_a_server_the_training_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracked, "POINT_SECONDS", 0.0)
    config = Pretrain(**SMALL, out=tmp_path / "net")
    with caplog.at_level(logging.WARNING), pytest.raises(cli.Incomplete, match="cannot log to MLflow"):
        pretrain.main(config)
    said = [record.getMessage() for record in caplog.records if "MLflow" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("the training goes on, and is not in MLflow: ")
    assert (tmp_path / "net" / "model" / "README.md").exists()


def test_what_a_server_missed_is_logged_by_the_same_command(uri, tmp_path, monkeypatch):
    config = Pretrain(**SMALL, out=tmp_path / "net")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(cli.Incomplete):
        pretrain.main(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    pretrain.main(config)
    client, [run] = runs(uri)
    assert [step for step, _ in history(client, run, "loss")] == list(range(6))


def test_points_are_logged_once_in_a_while(uri, tmp_path, monkeypatch):
    config = Pretrain(**SMALL, out=tmp_path / "net")
    monkeypatch.setattr(tracked, "POINT_SECONDS", 1e6)
    with tracked_training(config, set_up(config)) as log:
        for step in range(1, 5):
            log.show(TrainingProgress(step, 1.0, 10.0, {}))
    client, [run] = runs(uri)
    assert len(history(client, run, "loss")) == 1
