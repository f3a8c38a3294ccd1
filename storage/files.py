"""Files that appear whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
