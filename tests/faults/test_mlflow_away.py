"""A real MLflow server behind a proxy of the test's own, which delays, drops and refuses."""

import os
import signal
import socket
import threading
import time
from contextlib import suppress

import pytest

from storage.tracking import Tracker, check_server
from tests.commands import PATIENCE_SECONDS, wait_for
from tests.servers import free_port, mlflow_server

OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", 8))
CREATE_RUN = b"/mlflow/runs/create"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port = free_port()
    with mlflow_server(tmp_path_factory.mktemp("server"), port) as process:
        process.port = port
        yield process


class Proxy:
    """One TCP connection a request. drop: so many of the next requests to create a run get no answer, though the server
    got them."""

    def __init__(self, server_port):
        self.server_port, self.port = server_port, free_port()
        self.seen: list[tuple[float, bytes]] = []
        self.delay_seconds, self.drop = 0.0, 0
        self.open()

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}"

    def open(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def close(self):
        """Connections are refused from here on."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self, listener):
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(listener.accept()[0],), daemon=True).start()

    def _serve(self, client):
        with client, socket.create_connection(("127.0.0.1", self.server_port)) as upstream, suppress(OSError):
            request = b""
            while not whole(request):
                request += client.recv(65536)
            self.seen.append((time.time(), request.split(b" ", 2)[1]))
            upstream.sendall(request.replace(b"Connection: keep-alive", b"Connection: close", 1))
            answer = b"".join(iter(lambda: upstream.recv(65536), b""))
            time.sleep(self.delay_seconds)
            if self.drop and CREATE_RUN in request:
                self.drop -= 1
            else:
                client.sendall(answer)

    def num_created(self):
        return sum(CREATE_RUN in path for _, path in self.seen)


def whole(request):
    head, end, body = request.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return end and len(body) >= sum(map(int, lengths))


@pytest.fixture
def proxy(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "6")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


def log(tracker, name):
    metrics = [("val_accuracy", 0.5, 300, 101.0)]
    tracker.log_child(f"key-{name}", name, {"block": "mid"}, metrics, 100.0, 101.0, stopped_early=False)


def names(tracker):
    return sorted((run.info.run_name, run.info.status) for run in tracker._children())


def test_a_server_that_answers(server):
    uri = f"http://127.0.0.1:{server.port}"
    check_server(uri)
    check_server(uri.replace("//", "//me:secret@"))
    for _ in range(2):
        tracker = Tracker(uri, "digits", "sound", "sound")
        log(tracker, "a")
    assert names(tracker) == [("a", "FINISHED")]


def test_a_lost_answer_doubles_neither_parent_nor_child(proxy):
    proxy.drop = 1
    tracker = Tracker(proxy.uri, "digits", "lost", "lost")
    proxy.drop = 1
    log(tracker, "a")
    assert proxy.num_created() == 4
    tracker.finish({"val_accuracy": 0.5}, [])
    assert len(tracker.client.search_runs([tracker.experiment_id], "tags.`ddae.key` = 'lost'")) == 1
    assert names(tracker) == [("a", "FINISHED")]


def test_a_long_outage_is_one_line_and_what_is_missing_is_logged_later(proxy, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    tracker = Tracker(proxy.uri, "digits", "long", "long")
    log(tracker, "a")
    proxy.drop = 2  # both tries
    for again in range(2):
        with pytest.raises(ValueError, match=r"cannot log to MLflow at .*; what was finished is kept, and the same"):
            log(tracker, "b")
        if not again:
            proxy.close()
    proxy.open()
    for name in "abc":
        log(tracker, name)
    assert names(tracker) == [(name, "FINISHED") for name in "abc"]


def test_without_a_server_nothing_is_begun(refused, tmp_path):
    uri = f"http://127.0.0.1:{free_port()}"
    assert f"MLFLOW_TRACKING_URI={uri} does not answer" in refused(cwd=tmp_path, MLFLOW_TRACKING_URI=uri)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_does_not_wait_for_a_slow_server_and_outlasts_an_outage(begin, server, proxy, tmp_path):
    """The server is stopped at the first trial that is logged, until all trials are fitted; nothing else could fit them
    than a search that does not wait. One answer is lost as well."""
    proxy.delay_seconds = 0.3

    def num_fitted():
        return sum('"metrics"' in path.read_text() for path in tmp_path.glob("out/store/ledger/*/*.json"))

    process = begin(cwd=tmp_path, MLFLOW_TRACKING_URI=proxy.uri)
    assert wait_for(lambda: any(tmp_path.rglob("*.arrow")), process)  # the parent is there; what comes next is a child
    proxy.drop, before = 1, proxy.num_created()
    assert wait_for(lambda: proxy.num_created() > before, process)
    os.killpg(server.pid, signal.SIGSTOP)
    stopped = time.time()
    try:
        assert wait_for(lambda: num_fitted() == 4, process)
        time.sleep(max(0.0, stopped + OUTAGE_SECONDS - time.time()))
    finally:
        os.killpg(server.pid, signal.SIGCONT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0 and "answer" in out and "Traceback" not in err, err

    tracker = Tracker(f"http://127.0.0.1:{server.port}", "digits", "unused", "unused")
    children = tracker.client.search_runs([tracker.experiment_id], "params.pooling != ''")
    assert len({child.info.run_name for child in children}) == len(children) == 4
    assert {child.info.status for child in children} == {"FINISHED"}
    fitted = max(child.info.end_time for child in children) / 1000
    logged = max(at for at, path in proxy.seen if CREATE_RUN in path)
    assert fitted < logged
    print(f"{len(proxy.seen)} requests; the last trial was logged {logged - fitted:.0f} s after the last fit")
