"""Where sweeps are logged, whether it answers, and what its errors mean to a person."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.secrets import hidden

DEFAULT_URI = "sqlite:///mlflow.db"
PAUSES_SECONDS = 2, 5
"""Before a server that is busy is asked again, when a sweep begins."""
ANSWER_SECONDS = "10"
CODES = {
    401: (
        "wants a user (401)",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
    403: ("does not let this user in, or is not MLflow (403)", "look at the address, its port, user and password"),
    404: ("is not MLflow (404)", "look at the address, its port and path"),
}
"""What an answer means, and what to do."""
PACKAGES = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
    "databricks": "databricks-sdk",
}
"""A module -> the packages that have it, where they are called otherwise."""

log = logging.getLogger("storage")


class NotLogged(ValueError):
    """MLflow lacks something of what was found; nothing that was found is lost."""


def tracking_uri(recorded: str = "") -> str:
    """MLFLOW_TRACKING_URI, else the address that a sweep has recorded, else a SQLite file in the working folder; of a
    local file always the whole path."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip().strip("'\"").strip()
    return absolute_uri(given or recorded or DEFAULT_URI)


def absolute_uri(uri: str) -> str:
    scheme, separator, path = uri.partition(":///")
    relative = scheme == "sqlite" and separator and path and not path.startswith((":memory:", "file:"))
    return f"sqlite:///{Path(path).expanduser().absolute()}" if relative else uri


def ask(uri: str, question: Callable[[], object]) -> None:
    """Raises ValueError, of one line and within a minute, where the server at an http address does not answer MLflow's
    question, and says so while it asks again."""
    for pause in (*PAUSES_SECONDS, None):
        try:
            with environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT=ANSWER_SECONDS):
                question()
                return
        except Exception as error:
            reason, remedy, passes = _meaning(error)
            if not passes or pause is None:
                raise ValueError(
                    f"MLFLOW_TRACKING_URI={hidden(uri)} {reason}; {remedy}, or unset the variable to log to "
                    f"{DEFAULT_URI}"
                ) from error
            log.warning("MLflow at %s %s; asking again in %s s", hidden(uri), reason, pause)
            time.sleep(pause)


def _meaning(error: Exception) -> tuple[str, str, bool]:
    """What is wrong with a server, what to do, and whether it may pass."""
    text = str(error)
    if found := re.search(r"code (\d{3}) !=|too many (\d{3}) error", text):
        code = int(found[1] or found[2])
        reason, remedy = CODES.get(code, (f"answers with an error ({code})", "look at it, or at what stands before it"))
        return reason, remedy, code in (408, 429) or code >= 500
    if "redirects" in text or "valid JSON" in text:
        return "answers with another page than MLflow's, such as a login", "give the address of MLflow itself", False
    passes = not re.search("NewConnectionError|NameResolutionError|refused|URL|label", text)
    return f"does not answer ({cause(error)})", "start the server, or look at http_proxy and no_proxy", passes


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables of the environment, until the block ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def cause(error: BaseException) -> str:
    """The root of an error in one line, with what to do where that is known; no password."""
    root = error
    while root.__cause__:
        root = root.__cause__
    said = " ".join(hidden(str(root)).split())[:300] or type(root).__name__
    if isinstance(root, ImportError):
        module = (root.name or "").partition(".")[0]
        return f"{said}; pip install {PACKAGES.get(module, module or 'its client library')}"
    if isinstance(root, OSError) and root.filename:
        return f"{root.filename}: {str(root.strerror).lower()}; let this user write there"
    if "credentials" in said.lower() and "botocore" in type(root).__module__:
        return f"{said}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "maintenance mode" in said:
        return "MLflow keeps no runs in plain folders any more; give an address, as sqlite:////folder/mlflow.db"
    if "locking protocol" in said or "disk I/O error" in said or "database is locked" in said:
        return f"{said}; SQLite wants a file system with locks: MLFLOW_TRACKING_URI=sqlite:////tmp/mlflow.db"
    return said
