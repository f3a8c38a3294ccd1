"""Files that appear whole or not at all, and locks."""

import errno
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from filelock import FileLock, Timeout

NO_LOCKS = errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL

log = logging.getLogger("storage")

_WARNED: set[int] = set()
"""Devices, as stat has them, of which a line was said."""


def cache_folder() -> Path:
    """What this machine keeps for itself; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "ddae-sweeps"


@contextmanager
def locked(path: Path, timeout_seconds: float = -1, says: bool = True) -> Iterator[None]:
    """One process at a time is in the block. Where the file system has no locks, that holds for the processes of this
    machine, and one line says so. Raises filelock.Timeout."""
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout_seconds)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise OSError(error.errno, error.strerror, str(path)) from error
        if says:
            warn_of_no_locks(path.parent)
        folder = Path(tempfile.gettempdir()) / f"ddae-sweeps-locks-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = FileLock(folder / f"{xxhash.xxh3_64_hexdigest(os.fsencode(path.absolute()))}.lock")
        lock.acquire(timeout=timeout_seconds)
    try:
        yield
    finally:
        lock.release()


def warn_of_no_locks(folder: Path) -> None:
    if (device := folder.stat().st_dev) in _WARNED:
        return
    _WARNED.add(device)
    log.warning(
        "%s lies on a file system without locks: run one sweep at a time on it, or mount it with locks (NFS: lockd, "
        "Lustre: -o flock), or give --out and --store on another",
        folder,
    )


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield a scratch path that becomes `path` when the block ends, so that a reader sees a whole file or none."""
    with scratch(path) as part:
        yield part
        os.replace(part, path)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside `path`, and remove it when the block ends; an error of the disk names `path`."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
    except OSError as error:
        if error.errno is None:  # not the machine's
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)
