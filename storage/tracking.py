"""Experiment tracking in MLflow; the only file that imports mlflow."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from subprocess import DEVNULL
from tempfile import TemporaryDirectory
from typing import Any

from storage.files import cache_folder, locked, published
from storage.secrets import hidden
from storage.tracking_server import DEFAULT_URI, NotLogged, ask, cause, environment, tracking_uri

__all__ = ["NotLogged", "Tracker", "check_server", "refusal", "tracking_uri"]

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # mlflow reads it when it is imported

KEY_TAG = "ddae.key"
THIS_RUN = "{run_id}"
"""Stands for the parent's id in its description, which another server gives another one."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the UI on runs instead of on the traces of language models."""


def check_server(uri: str) -> None:
    """Raises ValueError where an http tracking server does not answer as MLflow does, and for a SQLite database that
    is no file; other stores are checked when they open."""
    if uri.startswith("sqlite:"):
        path = uri.partition("?")[0].partition("://")[2].removeprefix("/")
        if path in ("", ":memory:") or "mode=memory" in uri:
            raise ValueError(f"MLFLOW_TRACKING_URI={uri} is gone when the command ends; give a file, as {DEFAULT_URI}")
        if Path(path).is_dir():
            raise ValueError(
                f"MLFLOW_TRACKING_URI={uri} is a folder; give a file, as sqlite:///{Path(path, 'mlflow.db')}"
            )
    if uri.startswith(("http://", "https://")):
        from mlflow import MlflowClient

        ask(uri, lambda: MlflowClient(uri).search_experiments(max_results=1))


def create_database(uri: str) -> None:
    """A SQLite file that is not there yet, whole or not at all: MLflow does not go on with half a schema."""
    from sqlalchemy.engine import make_url

    path = Path((uri.startswith("sqlite:") and make_url(uri).database) or "")
    if path.name in ("", ":memory:") or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            with published(path) as part:
                part.write_bytes(empty_database())


def empty_database() -> bytes:
    """MLflow's SQLite file before its first experiment. MLflow takes seconds to make one, so this machine keeps it, and
    makes it anew where what it keeps is damaged."""
    import mlflow

    kept = kept_database()
    with ExitStack() as held:
        with suppress(OSError):  # where nothing can be kept, each process makes its own
            kept.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(kept.with_name(f".{kept.name}.lock"), says=False))
        with suppress(OSError, sqlite3.Error), closing(sqlite3.connect(f"{kept.as_uri()}?mode=ro", uri=True)) as there:
            if there.execute("select quick_check from pragma_quick_check, alembic_version").fetchone() == ("ok",):
                return kept.read_bytes()
        with TemporaryDirectory() as folder:
            made = Path(folder, "mlflow.db")
            mlflow.MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
            with closing(sqlite3.connect(made)) as database, database:
                database.execute("delete from experiments")  # the default one, whose files would go to that folder
            content = made.read_bytes()
        with suppress(OSError), published(kept) as part:
            part.write_bytes(content)
    return content


def make_ahead() -> subprocess.Popen | None:
    """Where this machine keeps no empty database, have another process make it while this one loads its libraries."""
    if not tracking_uri().startswith("sqlite:") or kept_database().exists():
        return None
    command = [sys.executable, "-c", "from storage.tracking import empty_database; empty_database()"]
    return subprocess.Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)


def kept_database() -> Path:
    return cache_folder() / f"mlflow-{version('mlflow')}.db"


def refusal(message: str) -> Exception:
    """What a served model raises for bad input: the server answers 400 with this message."""
    from mlflow.exceptions import MlflowException

    return MlflowException.invalid_parameter_value(message)


def trials_view(
    parent_id: str, metric: str, params: Sequence[str], axes: Sequence[str], ascending: bool
) -> dict[str, object]:
    """What the UI's page of runs shows, written as the UI itself keeps a view that a person shares."""
    columns = [f"metrics.`{metric}`", *(f"params.`{name}`" for name in params)]
    return {
        "searchFilter": f"tags.mlflow.parentRunId = '{parent_id}'",
        "orderByKey": columns[0],
        "orderByAsc": ascending,
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [{"uuid": "trials", "name": "Trials", "display": True, "columns": 1}],
        "compareRunCharts": [
            {
                "type": "PARALLEL",
                "uuid": "axes",
                "metricSectionId": "trials",
                "selectedParams": axes,
                "selectedMetrics": [metric],
                "showAllRuns": True,
            }
        ],
        "isAccordionReordered": True,
    }


class Tracker:
    """A sweep as one parent run with one child a trial. Give it the same sweep again and it goes on."""

    def __init__(self, uri: str, experiment: str, sweep_key: str, sweep_name: str):
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")  # two minutes without a server
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # an error is raised; its traceback is no help
        self.uri = uri
        self.opened: dict[str, Any] = {"experiment": experiment, "key": sweep_key, "name": sweep_name, "params": {}}
        """What the parent was opened with, as JSON knows it, for the sweep to be logged elsewhere."""
        self._logged: set[str] | None = None
        self._view = ""
        with self._one_line():
            create_database(uri)
            self.client = MlflowClient(uri)
            found = self.client.get_experiment_by_name(experiment)
            if found and found.lifecycle_stage == "deleted":
                raise NotLogged(
                    f"MLflow's experiment {experiment!r} at {hidden(uri)} has been deleted; restore it: "
                    f"MLFLOW_TRACKING_URI={hidden(uri)} mlflow experiments restore -x {found.experiment_id}"
                )
            self.experiment_id = found.experiment_id if found else self.client.create_experiment(experiment, tags=KIND)
            self.parent_id = self._open_parent(sweep_key, sweep_name)
            self._logged = self._finished_children()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log params to the parent run; existing ones are kept."""
        from mlflow.entities import Param

        self.opened["params"] |= params
        with self._one_line():
            known = self.client.get_run(self.parent_id).data.params
            fresh = [Param(name, str(value)) for name, value in params.items() if name not in known]
            self.client.log_batch(self.parent_id, params=fresh)

    def show(self, metric: str, params: Sequence[str], axes: Sequence[str], ascending: bool = False) -> None:
        """From here on `where` shows the trials of this sweep alone, the best metric first, with these params as
        columns, and a chart of parallel coordinates over the axes. ascending: lower is better."""
        self.opened["view"] = {"metric": metric, "params": list(params), "axes": list(axes), "ascending": ascending}
        self._view = self.parent_id[:8]
        view = json.dumps(trials_view(self.parent_id, metric, params, axes, ascending))
        with self._one_line():
            self.client.set_experiment_tag(self.experiment_id, f"mlflow.sharedViewState.{self._view}", view)

    def log_child(
        self,
        key: str,
        name: str,
        params: Mapping[str, object],
        metrics: Iterable[tuple[str, float, int, float]],
        started_seconds: float,
        ended_seconds: float,
        stopped_early: bool = False,
    ) -> None:
        """Log a finished trial as a child run. key: the hash of what decides it; the same key is never logged twice.
        metrics: (name, value, step, seconds since the epoch)."""
        if self._logged is None:
            with self._one_line():
                self._logged = self._finished_children()
        if key in self._logged:
            return
        from mlflow.entities import Metric, Param

        tags = {KEY_TAG: key, "mlflow.parentRunId": self.parent_id} | ({"stopped_by": "ASHA"} if stopped_early else {})
        values = [Metric(name, value, int(seconds * 1000), step) for name, value, step, seconds in metrics]
        with self._one_line():
            run_id = self.client.create_run(
                self.experiment_id, start_time=int(started_seconds * 1000), tags=tags, run_name=name
            ).info.run_id
            self.client.log_batch(run_id, values, [Param(param, str(value)) for param, value in params.items()])
            self.client.set_terminated(run_id, "KILLED" if stopped_early else "FINISHED", int(ended_seconds * 1000))
        self._logged.add(key)

    def log_points(self, points: Sequence[tuple[str, float, int, float]]) -> None:
        """Log (name, value, step, seconds since the epoch) to the parent."""
        from mlflow.entities import Metric

        with self._one_line():
            for start in range(0, len(points), 1000):  # as many as MLflow takes at once
                values = [Metric(name, value, int(at * 1000), step) for name, value, step, at in points[start:][:1000]]
                self.client.log_batch(self.parent_id, metrics=values)

    def last_step(self, metric: str) -> int:
        """The last step of the parent at which a metric was logged; -1 for none."""
        with self._one_line():
            return max((each.step for each in self.client.get_metric_history(self.parent_id, metric)), default=-1)

    def log_file(self, path: Path, folder: str) -> None:
        """Log a file to a folder of the parent's artifacts."""
        with self._one_line():
            self.client.log_artifact(self.parent_id, str(path), folder)

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """A server that has failed to answer so far is asked but once more in the block."""
        with environment(**({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"} if self._logged is None else {})):
            yield

    def finish(self, metrics: Mapping[str, float], artifacts: Sequence[Path], note: str = "") -> None:
        """Metrics, files and description (Markdown, where THIS_RUN is the parent's id) of the parent, which is then
        FINISHED."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with self._one_line():
            self._finished_children()
            known = self.client.get_run(self.parent_id).data.metrics
            values = [Metric(name, value, now, 0) for name, value in metrics.items() if known.get(name) != value]
            self.client.log_batch(self.parent_id, metrics=values)
            for path in artifacts:
                self.client.log_artifact(self.parent_id, str(path))
            if note:
                self.client.set_tag(self.parent_id, "mlflow.note.content", note.replace(THIS_RUN, self.parent_id))
            self.client.set_terminated(self.parent_id, "FINISHED")

    def log_model(
        self,
        name: str,
        key: str,
        register: str,
        columns: Sequence[Mapping[str, str]],
        example: Mapping[str, object],
        **saved: Any,
    ) -> str:
        """models:/<id>, the address of the parent's model of this key, which is logged once: rows of one table in, of
        another out. register: a name in MLflow's registry that gets it as a version, once. columns: column -> MLflow's
        type, of the inputs and of the outputs. example: a row of the inputs. saved: what it is made of, by the names
        of mlflow.pyfunc.save_model."""
        from mlflow.exceptions import MlflowException

        with self._one_line():
            found = self.client.search_logged_models([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'")
            whole = [logged for logged in found if logged.status == "READY"]
            if not whole:
                for broken in found:
                    self.client.delete_logged_model(broken.model_id)
                whole = [self._write_model(name, key, columns, example, saved)]
            address = f"models:/{whole[0].model_id}"
            if register:
                with suppress(MlflowException):  # it exists
                    self.client.create_registered_model(register)
                versions = self.client.search_model_versions(f"name = '{register}'")
                if address not in [version.source for version in versions]:
                    self.client.create_model_version(register, address, self.parent_id, model_id=whole[0].model_id)
        return address

    def __enter__(self) -> "Tracker":
        with self._one_line():
            self.client.update_run(self.parent_id, "RUNNING")
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """A sweep that was interrupted is KILLED, one that failed is FAILED, until the same sweep is opened again."""
        if error is not None:
            at_once = environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT="10")
            with at_once, suppress(ValueError), self._one_line():
                self.client.set_terminated(self.parent_id, "FAILED" if isinstance(error, Exception) else "KILLED")

    @property
    def where(self) -> str:
        """How a person sees the sweep: an address, or the command that starts the UI; no password."""
        page = f"/#/experiments/{self.experiment_id}/runs"
        if self._view:
            page += f"?viewStateShareKey={self._view}"
        if self.uri.startswith(("http://", "https://")):
            return hidden(self.uri).rstrip("/") + page
        short = self.uri.replace(f"sqlite:///{Path.cwd()}/", "sqlite:///")
        return f"mlflow ui --backend-store-uri {quote(hidden(short))}, then http://127.0.0.1:5000{page}"

    def artifact_trouble(self) -> str:
        """Why files cannot be logged, as far as it can be known before there are any; empty where nothing speaks
        against it."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        with self._one_line():
            where = self.client.get_run(self.parent_id).info.artifact_uri
        try:
            repository = get_artifact_repository(where)
            if where.startswith(("s3:", "r2:", "b2:")):
                import boto3  # noqa: F401  # as MLflow does with the first file
            if isinstance(repository, LocalArtifactRepository):
                folder = Path(repository.artifact_dir)
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        except Exception as error:  # every artifact store has classes of its own
            return f"MLflow's files go to {hidden(where)}: {cause(error)}"
        return ""

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except NotLogged:
            raise
        except Exception as error:  # every database and artifact store has classes of its own
            self._logged = None  # what has arrived is to be asked
            raise NotLogged(
                f"cannot log to MLflow at {hidden(self.uri)}: {cause(error)}; what was finished is kept, and the same "
                "command logs what is missing"
            ) from error

    def _open_parent(self, key: str, name: str) -> str:
        """The id of the parent run; of several, which a lost answer to create_run leaves, the first stays."""

        def parents():
            where = f"tags.`{KEY_TAG}` = '{key}'"
            return self.client.search_runs([self.experiment_id], where, order_by=["attributes.start_time"])

        found = parents()
        if not found:
            self.client.create_run(self.experiment_id, tags={KEY_TAG: key}, run_name=name)
            found = parents()
        for run in found[1:]:
            self.client.delete_run(run.info.run_id)
        return found[0].info.run_id

    def _write_model(self, name: str, key: str, columns, example: Mapping[str, object], saved: dict[str, Any]):
        from mlflow import pyfunc
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, Schema
        from pandas import DataFrame

        params = self.client.get_run(self.parent_id).data.params
        logged = self.client.create_logged_model(self.experiment_id, name, self.parent_id, {KEY_TAG: key}, params)
        ids = {"model_id": logged.model_id, "model_uuid": logged.model_id, "run_id": self.parent_id}
        schemas = [Schema([ColSpec(kind, column) for column, kind in table.items()]) for table in columns]
        with TemporaryDirectory() as scratch:
            pyfunc.save_model(
                f"{scratch}/model",
                mlflow_model=Model(artifact_path=logged.artifact_location, **ids),
                signature=ModelSignature(*schemas),
                input_example=DataFrame([example]),
                **saved,
            )
            self.client.log_model_artifacts(logged.model_id, f"{scratch}/model")
        self.client.log_outputs(self.parent_id, [LoggedModelOutput(logged.model_id, step=0)])
        return self.client.finalize_logged_model(logged.model_id, "READY")

    def _finished_children(self) -> set[str]:
        """Keys of the children that are whole; one that is RUNNING, left by a killed process or by a lost answer, is
        deleted, to be logged anew."""
        finished = set()
        for run in self._children():
            if run.info.status == "RUNNING":
                self.client.delete_run(run.info.run_id)
            else:
                finished.add(run.data.tags[KEY_TAG])
        return finished

    def _children(self):
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], f"tags.mlflow.parentRunId = '{self.parent_id}'", page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return
