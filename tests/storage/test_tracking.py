import pytest

from storage.tracking import Tracker, check_server, tracking_uri
from tests.servers import free_port, mlflow_server


def log_child(tracker, name, stopped_early=False):
    metrics = [("val_accuracy", value, step, 101.0) for step, value in ((300, 0.5), (1200, 0.6))]
    tracker.log_child(f"key-{name}", name, {"block": "mid", "timestep": 60}, metrics, 100.0, 101.0, stopped_early)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def children(tracker):
    return {run.info.run_name: run for run in tracker._children()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("here")
class TestTracker:
    def test_trials_are_children_with_params_and_steps(self, sqlite):
        tracker = Tracker(sqlite, "digits", "sweep-1", "first")
        tracker.log_params({"dataset": "digits"})
        log_child(tracker, "a")
        log_child(tracker, "b", stopped_early=True)
        runs = children(tracker)
        assert {name: run.info.status for name, run in runs.items()} == {"a": "FINISHED", "b": "KILLED"}
        assert runs["b"].data.tags["stopped_by"] == "ASHA"
        assert runs["a"].data.params == {"block": "mid", "timestep": "60"}
        history = tracker.client.get_metric_history(runs["a"].info.run_id, "val_accuracy")
        assert [(m.step, m.value) for m in history] == [(300, 0.5), (1200, 0.6)]

    def test_the_same_sweep_goes_on_and_logs_nothing_twice(self, sqlite):
        for _ in range(2):
            tracker = Tracker(sqlite, "digits", "sweep-2", "second")
            tracker.log_params({"dataset": "digits"})
            log_child(tracker, "a")
            log_child(tracker, "a")
        assert len(children(tracker)) == 1
        assert len(tracker.client.search_runs([tracker.experiment_id], "tags.`ddae.key` = 'sweep-2'")) == 1

    def test_a_child_that_was_cut_off_is_logged_anew(self, sqlite):
        tracker = Tracker(sqlite, "digits", "sweep-3", "third")
        tags = {"ddae.key": "key-a", "mlflow.parentRunId": tracker.parent_id}
        tracker.client.create_run(tracker.experiment_id, tags=tags, run_name="a")
        again = Tracker(sqlite, "digits", "sweep-3", "third")
        log_child(again, "a")
        assert [run.info.status for run in again._children()] == ["FINISHED"]

    def test_the_parent_says_how_the_sweep_ended(self, sqlite, tmp_path):
        figure = tmp_path / "figure.png"
        figure.write_bytes(b"png")
        tracker = Tracker(sqlite, "digits", "sweep-4", "fourth")

        def status():
            return tracker.client.get_run(tracker.parent_id).info.status

        with pytest.raises(KeyboardInterrupt), tracker:
            raise KeyboardInterrupt
        assert status() == "KILLED"
        with pytest.raises(ValueError), tracker:
            raise ValueError
        assert status() == "FAILED"
        with tracker:
            assert status() == "RUNNING"
            tracker.finish({"val_accuracy": 0.9}, [figure])
        assert status() == "FINISHED"
        assert [file.path for file in tracker.client.list_artifacts(tracker.parent_id)] == ["figure.png"]


@pytest.mark.parametrize("user", ["", "me:secret@"])
def test_a_server_that_does_not_answer_is_one_line(user):
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI=http://127.0.0.1:\d+ does not answer"):
        check_server(f"http://{user}127.0.0.1:{free_port()}")


def test_a_deleted_experiment_says_how_to_restore_it(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(uri, "gone", "sweep", "sweep")
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(ValueError, match=f"has been deleted; restore it: .* restore -x {tracker.experiment_id}$"):
        Tracker(uri, "gone", "sweep", "sweep")


def test_a_database_that_cannot_be_opened_is_one_line():
    with pytest.raises(ValueError, match=r"cannot log to MLflow at sqlite:////dev/null/mlflow.db"):
        Tracker("sqlite:////dev/null/mlflow.db", "digits", "sweep", "sweep")


def test_the_environment_decides_the_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri() == "http://127.0.0.1:1"


def test_a_real_server(tmp_path):
    uri = f"http://127.0.0.1:{(port := free_port())}"
    with mlflow_server(tmp_path, port):
        check_server(uri)
        check_server(uri.replace("//", "//me:secret@"))
        for _ in range(2):
            tracker = Tracker(uri, "digits", "sweep", "sweep")
            log_child(tracker, "a")
        assert list(children(tracker)) == ["a"]
