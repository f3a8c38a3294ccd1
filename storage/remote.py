"""A store at an address: a bucket, or a folder of any filesystem that pyarrow or fsspec knows.

Every machine keeps what it has read or written of it in a folder of its own, which may be deleted at any time.
"""

import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import xxhash
from pyarrow import fs

from storage.files import cache_folder

PYARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
"""Schemes that pyarrow knows; all others are fsspec's."""
OBJECT_STORES = ("s3", "gcs", "abfs")
"""pyarrow's names of filesystems where a whole file appears at once, and folders need not be made."""
SECRET = r"//[^/?]*:[^?@]*@|[?&][^=&]*(secret|passw|token|key|sig)[^=&]*="
MARK = "_store.txt"
ADVICE = (
    "give a folder, or an address as s3://bucket/folder that exists and lets you in (AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY and, where it is not Amazon's, AWS_ENDPOINT_URL)"
)


def is_address(root: str | Path) -> bool:
    return "://" in str(root)


class Remote:
    """Whole files at an address, by names relative to it. Trouble is an OSError of one line.

    A path after the query goes on before it, so that a text can be put behind any address.
    """

    def __init__(self, address: str):
        if re.search(SECRET, address, re.IGNORECASE):
            raise ValueError(
                f"the {address.partition('://')[0]} address of the store holds a password or a key, which logs and "
                "MLflow would show; leave it out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what else "
                "that storage reads"
            )
        place, _, query = address.partition("?")
        query, _, rest = query.replace("://", ":%2F%2F").partition("/")
        scheme, _, path = place.partition("://")
        path = f"{path.rstrip('/')}/{rest}".rstrip("/")
        self.address = f"{scheme}://{path}?{query}" if query else f"{scheme}://{path}"

    @property
    def cache(self) -> Path:
        """This machine's folder for the address, below XDG_CACHE_HOME or ~/.cache."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        decides = f"{self.address} {endpoint if self.address.startswith('s3:') else ''}"
        name = re.sub(r"\W+", "-", self.address)[:80]
        return cache_folder() / f"{name}-{xxhash.xxh3_64_hexdigest(decides.encode())}"

    def check(self) -> None:
        """Raises ValueError where the address is wrong, or nobody answers there, or not to this user."""
        with self._one_line(ValueError, ADVICE):
            filesystem, path = _connect(self.address, tries=3)
            bucket = path.partition("/")[0]
            listed = bucket and filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
            if filesystem.type_name in OBJECT_STORES and not listed:
                with suppress(OSError):  # a user may be let into one folder of a bucket alone
                    if not bucket or filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
                        raise ValueError(f"there is no bucket {bucket!r}")

    def check_writable(self) -> None:
        """As check, and of this machine's folder; leaves a mark there."""
        with self._one_line(ValueError, ADVICE):
            self._write(MARK, pa.py_buffer(b"Features and results of ddae-sweeps.\n"))
        with self._one_line(ValueError, "set XDG_CACHE_HOME to a folder of this machine that can be written"):
            self.cache.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.cache).close()

    def names(self, folder: str) -> set[str]:
        """The names of the files in a folder, which need not be there."""
        with self._one_line():
            filesystem, path = _connect(self.address)
            listed = filesystem.get_file_info(fs.FileSelector(f"{path}/{folder}", allow_not_found=True))
        return {info.base_name for info in listed if info.is_file}

    def read(self, name: str) -> pa.Buffer:
        """Raises FileNotFoundError where there is none."""
        with self._one_line(), suppress(FileNotFoundError):
            filesystem, path = _connect(self.address)
            with filesystem.open_input_file(f"{path}/{name}") as file:
                return file.read_buffer()
        raise FileNotFoundError(f"{self.address} has no {name}")

    def put(self, name: str, file: Path) -> None:
        """A local file; readers see all of it or none."""
        with pa.memory_map(str(file)) as data, self._one_line():
            self._write(name, data.read_buffer())

    def delete(self, name: str) -> None:
        with self._one_line(), suppress(FileNotFoundError):
            filesystem, path = _connect(self.address)
            filesystem.delete_file(f"{path}/{name}")

    def _write(self, name: str, data: pa.Buffer) -> None:
        filesystem, path = _connect(self.address)
        target = f"{path}/{name}"
        if filesystem.type_name in OBJECT_STORES:
            _write(filesystem, target, data)
            return
        folder, _, last = target.rpartition("/")
        part = f"{folder}/.{last}.{uuid.uuid4().hex}.part"
        filesystem.create_dir(folder)
        try:
            _write(filesystem, part, data)
            filesystem.move(part, target)
        except BaseException:
            with suppress(Exception):
                filesystem.delete_file(part)
            raise

    @contextmanager
    def _one_line(
        self,
        kind: type[Exception] = OSError,
        advice: str = "what was finished is kept, and the same command goes on",
    ) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every filesystem has classes of its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise kind(f"store={self.address!r}: {reason}; {advice}") from error


def _write(filesystem: fs.FileSystem, path: str, data: pa.Buffer) -> None:
    with filesystem.open_output_stream(path) as file:
        file.write(data)


@lru_cache
def _connect(address: str, tries: int = 7) -> tuple[fs.FileSystem, str]:
    """The filesystem, and the path in it.

    tries: of a request to S3, after pauses that double, seven in about half a minute; AWS_MAX_ATTEMPTS goes before.
    pyarrow's own are thirty in six seconds, too soon and too many for a server that asks for less.
    """
    scheme = address.partition("://")[0]
    if scheme not in PYARROW:
        import fsspec

        found, path = fsspec.url_to_fs(address)
        return fs.PyFileSystem(fs.FSSpecHandler(found)), path
    filesystem, path = fs.FileSystem.from_uri(address)
    if isinstance(filesystem, fs.S3FileSystem):
        strategy = fs.AwsStandardS3RetryStrategy(max_attempts=int(os.environ.get("AWS_MAX_ATTEMPTS") or tries))
        _, (options,) = filesystem.__reduce__()  # an address has no word for the strategy
        one_request = {"allow_delayed_open": True}  # for a small file
        filesystem = fs.S3FileSystem(**options | one_request, retry_strategy=strategy)
    return filesystem, path
