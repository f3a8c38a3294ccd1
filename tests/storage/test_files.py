import errno
import fcntl
import multiprocessing
import os

import pytest
from filelock import Timeout

from storage import files
from storage.files import locked


@pytest.fixture
def no_locks(monkeypatch, tmp_path):
    """A function that makes a folder a file system without locks, which answers with this error."""
    flock = fcntl.flock

    def make(folder, number):
        def refuse(descriptor, operation):
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(folder)):
                raise OSError(number, os.strerror(number))
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", refuse)

    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    files._WARNED.clear()
    return make


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_the_processes_of_a_machine_keep_apart(number, no_locks, tmp_path, caplog):
    (folder := tmp_path / "mount").mkdir()
    no_locks(folder, number)
    with locked(folder / ".lock"):
        with pytest.raises(Timeout), locked(folder / ".lock", 0):
            pass
        with locked(folder / ".another", 0):
            pass
    with locked(folder / ".lock", 0):
        pass
    assert caplog.text.count(f"{folder} lies on a file system without locks") == 1


def test_any_other_error_names_the_path(no_locks, tmp_path):
    (folder := tmp_path / "mount").mkdir()
    no_locks(folder, errno.ESTALE)
    with pytest.raises(OSError, match=r"\.lock") as error, locked(folder / ".lock"):
        pass
    assert error.value.errno == errno.ESTALE


def hold(path, begun, over):
    with locked(path):
        begun.set()
        over.wait(60)


def test_a_killed_process_holds_no_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    begun, over = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / ".lock", begun, over))
    process.start()
    assert begun.wait(60)
    with pytest.raises(Timeout), locked(tmp_path / ".lock", 0):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / ".lock", 0):
        pass
