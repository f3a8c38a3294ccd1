import sys
from pathlib import Path

import pytest

from sweeps import cli
from tests.commands import PATIENCE_SECONDS
from tests.faults.sweeps import ARGS, SMALL, finish


@pytest.fixture(scope="session")
def undisturbed(tiny_model, fork, tmp_path_factory) -> Path:
    """The folder in which the sweep has run in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(fork("layer_noise", "--backbone", tiny_model, *ARGS, cwd=folder))
    return folder


@pytest.fixture
def begin(tiny_model, fork):
    """A function that starts a sweep of four cells."""
    started = []

    def begin(*args, cwd, **env):
        started.append(fork("layer_noise", "--backbone", tiny_model, *SMALL, *args, cwd=cwd, **env))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def refused(begin):
    """A function that runs a sweep which cannot go on, and gives its last line."""

    def refused(*args, cwd, **env):
        process = begin(*args, cwd=cwd, **env)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 2 and out == "" and "Traceback" not in err, err
        return err.splitlines()[-1]

    return refused


@pytest.fixture
def error_of(monkeypatch, capsys, tmp_path):
    """A function that runs a command on a mistake, and gives its line; tmp_path/given holds what the user gives."""

    def error_of(command, config, args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.setattr(sys, "argv", ["command", *args])
        with pytest.raises(SystemExit) as exit:
            cli.run(command.main, config, command.__doc__)
        assert exit.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        [line] = err.strip().splitlines()
        assert line.startswith("error: ")
        assert [path for path in tmp_path.rglob("*") if path.is_file() and "given" not in path.parts] == []
        return line

    return error_of
