import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from mlflow import MlflowClient

from storage import tracking_server
from storage.tracking import (
    THIS_RUN,
    NotLogged,
    Tracker,
    check_server,
    create_database,
    empty_database,
    kept_database,
    make_ahead,
    tracking_uri,
)
from tests.servers import free_port


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
            tracker.finish({"val_accuracy": 0.9}, [figure], f"![of {THIS_RUN}]")
        assert status() == "FINISHED"
        note = tracker.client.get_run(tracker.parent_id).data.tags["mlflow.note.content"]
        assert note == f"![of {tracker.parent_id}]"
        assert [file.path for file in tracker.client.list_artifacts(tracker.parent_id)] == ["figure.png"]


@pytest.mark.parametrize("user", ["", "me:secret@"])
def test_a_server_that_does_not_answer_is_one_line(user):
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI=http://127.0.0.1:\d+ does not answer"):
        check_server(f"http://{user}127.0.0.1:{free_port()}")


class Answers(BaseHTTPRequestHandler):
    """What sits on MLflow's port when MLflow does not."""

    codes: ClassVar[list[int]] = []

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.codes[0] if len(self.codes) == 1 else self.codes.pop(0))
        body = b"<html><title>Sign in</title></html>"
        self.send_header("Location", "/login")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *args):
        pass


@pytest.fixture
def answers(monkeypatch):
    """A function that starts a server which gives these answers, the last one for ever; its address, with a user."""
    monkeypatch.setattr(tracking_server, "PAUSES_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(tracking_server, "ANSWER_SECONDS", "1")
    monkeypatch.setattr(Answers, "codes", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()

    def answers(*codes):
        Answers.codes[:] = codes
        return f"http://me:hush@127.0.0.1:{server.server_port}"

    yield answers
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("code", "said", "tries"),
    [
        (200, "another page than MLflow's", 0),
        (302, "another page than MLflow's", 0),
        (401, "MLFLOW_TRACKING_USERNAME", 0),
        (403, "does not let this user in", 0),
        (404, "is not MLflow", 0),
        (500, "500", 2),
        (502, "502", 2),
        (503, "503", 2),
        (429, "429", 2),
    ],
)
def test_another_server_on_its_port_is_one_line_without_a_password(code, said, tries, answers, caplog):
    with pytest.raises(ValueError) as error:
        check_server(answers(code))
    assert said in str(error.value) and "unset the variable" in str(error.value)
    assert "hush" not in str(error.value) + caplog.text and "\n" not in str(error.value)
    assert caplog.text.count("asking again") == tries


def test_a_server_that_never_answers_is_one_line(monkeypatch, caplog):
    monkeypatch.setattr(tracking_server, "PAUSES_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(tracking_server, "ANSWER_SECONDS", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ValueError, match="does not answer"):
        check_server(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert caplog.text.count("asking again") == 2


@pytest.mark.parametrize(
    "given", ["sqlite:////x/a.db", " sqlite:////x/a.db\n", '"sqlite:////x/a.db"', "'sqlite:////x/a.db' "]
)
def test_an_address_is_read_through_blanks_and_quotes(given, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri() == tracking_uri("http://recorded") == "sqlite:////x/a.db"


@pytest.mark.parametrize("given", ["", "  ", "\n", '""'])
def test_an_address_of_blanks_is_none(given, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri() == f"sqlite:///{Path.cwd()}/mlflow.db"
    assert tracking_uri("http://recorded") == "http://recorded"


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("mysql+pymysql://me:hush@127.0.0.1/db", "pip install pymysql"),
        ("mssql+pyodbc://me:hush@127.0.0.1/db", "pip install pyodbc"),
        ("./mlruns", "sqlite:////folder/mlflow.db"),
        ("foo://me:hush@127.0.0.1/db", "unsupported URI"),
    ],
)
def test_a_store_that_cannot_be_used_says_what_to_do(uri, remedy):
    with pytest.raises(NotLogged, match="cannot log to MLflow") as error:
        Tracker(uri, "digits", "sweep", "sweep")
    assert remedy in str(error.value) and "hush" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("where", "remedy"),
    [
        ("/proc/mlflow", "let this user write there"),
        ("gs://bucket/mlflow", "pip install google-cloud-storage"),
        ("sftp://host/mlflow", "pip install paramiko"),
        ("abfss://c@account.dfs.core.windows.net/x", "pip install azure-storage-blob azure-identity"),
    ],
)
def test_files_that_have_nowhere_to_go_are_told_before_there_are_any(where, remedy, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    create_database(uri)
    MlflowClient(uri).create_experiment("digits", artifact_location=where)
    tracker = Tracker(uri, "digits", "sweep", "sweep")
    assert remedy in tracker.artifact_trouble()
    log_child(tracker, "a")
    (figure := tmp_path / "figure.png").write_bytes(b"png")
    with pytest.raises(NotLogged) as error:
        tracker.finish({"val_accuracy": 0.9}, [figure])
    assert remedy in str(error.value) and "the same command logs" in str(error.value)
    assert "a" in children(tracker)


def test_files_that_can_be_written_are_no_trouble(sqlite):
    assert Tracker(sqlite, "digits", "sweep-5", "fifth").artifact_trouble() == ""


@pytest.mark.parametrize("as_address", [str, Path.as_uri])
def test_files_go_to_a_folder_of_any_name(as_address, tmp_path):
    uri, folder = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "a#b c"
    create_database(uri)
    MlflowClient(uri).create_experiment("digits", artifact_location=as_address(folder))
    assert Tracker(uri, "digits", "sweep", "sweep").artifact_trouble() == ""
    assert folder.is_dir() and {path.name for path in tmp_path.iterdir() if path.is_dir()} == {folder.name}


def test_a_sweep_that_fails_leaves_the_patience_of_the_next(sqlite, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")
    with pytest.raises(KeyboardInterrupt), Tracker(sqlite, "digits", "sweep-6", "sixth"):
        raise KeyboardInterrupt
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "6"


def test_a_deleted_experiment_says_how_to_restore_it(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(uri, "gone", "sweep", "sweep")
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(ValueError, match=f"has been deleted; restore it: .* restore -x {tracker.experiment_id}$"):
        Tracker(uri, "gone", "sweep", "sweep")


@pytest.mark.parametrize("kept", [b"", b"not a database", "not a folder"])
def test_a_new_database_is_a_copy_of_one_that_this_machine_keeps(kept, tmp_path, monkeypatch):
    """Whatever became of that one; and MLflow's default experiment keeps its files where the user works."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "cache" / "ddae-sweeps" / f"mlflow-{version('mlflow')}.db"
    file.parent.mkdir(parents=True)
    if kept == "not a folder":
        file.parent.rmdir()
        file.parent.write_text(kept)
    else:
        file.write_bytes(kept)
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "digits", "sweep", "sweep")
    default, ours = sorted(tracker.client.search_experiments(), key=lambda each: each.name)
    assert (default.experiment_id, default.artifact_location) == ("0", str(tmp_path / "mlruns" / "0"))
    assert ours.name == "digits" and ours.experiment_id != "0"
    assert kept == "not a folder" or file.read_bytes() == empty_database()


def test_mlflow_reports_to_nobody_from_whichever_process_loads_it():
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    code = "import os, sys, storage.tracking; print(os.environ['MLFLOW_DISABLE_TELEMETRY'], 'mlflow' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["true", "False"]


@pytest.mark.slow
def test_another_process_makes_the_database_ahead(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert make_ahead() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert make_ahead().wait() == 0 and kept_database().read_bytes() == empty_database()
    assert make_ahead() is None


def test_a_database_that_cannot_be_opened_is_one_line():
    with pytest.raises(ValueError, match=r"cannot log to MLflow at sqlite:////dev/null/mlflow.db"):
        Tracker("sqlite:////dev/null/mlflow.db", "digits", "sweep", "sweep")


def test_the_environment_decides_the_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{Path.cwd()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri() == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file::memory:?mode=memory"]
)
def test_a_database_that_ends_with_the_command_is_refused(uri):
    with pytest.raises(ValueError, match=r"is gone when the command ends; give a file, as sqlite:///mlflow\.db"):
        check_server(uri)


def test_a_folder_is_no_database(tmp_path):
    with pytest.raises(ValueError, match=rf"is a folder; give a file, as sqlite:///{tmp_path}/mlflow\.db"):
        check_server(f"sqlite:///{tmp_path}")


def test_the_home_folder_in_an_address(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/mlflow.db")
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
