"""The ledger: one small file a finished result, named by the hash of everything that decided it."""

import json
import logging
from contextlib import suppress
from pathlib import Path

import xxhash

from storage.files import published
from storage.remote import Remote, is_address

DAMAGED = "damaged result %s; it is deleted and will be made again"

log = logging.getLogger("storage")


def content_key(**decides: object) -> str:
    """xxh3_128 of the canonical JSON of what decides a result."""
    return digest(decides)


def digest(value: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())


class Ledger:
    """key -> record (a JSON object), append-only, safe for any number of writers of the same key.

    At an address, what this machine has read or written is kept in a folder of it, too.
    """

    def __init__(self, root: str | Path):
        self.remote = Remote(str(root)) if is_address(root) else None
        self.root = self.remote.cache if self.remote else Path(root)

    def get(self, key: str) -> dict | None:
        """None where there is no sound record; a damaged one is deleted, with one warning."""
        path = self._path(key)
        with suppress(FileNotFoundError):
            if (record := _record(key, path.read_bytes())) is not None:
                return record
            path.unlink()
            log.warning(DAMAGED, path)
        if self.remote:
            with suppress(FileNotFoundError):
                data = self.remote.read(self._name(path)).to_pybytes()
                if (record := _record(key, data)) is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with published(path) as part:
                        part.write_bytes(data)
                    return record
                self.remote.delete(self._name(path))
                log.warning(DAMAGED, f"{self._name(path)} of {self.remote.address}")
        return None

    def put(self, key: str, record: dict) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path) as part:
            part.write_text(json.dumps({"xxh3_128": digest([key, record]), "record": record}))
            if self.remote:
                self.remote.put(self._name(path), part)

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _record(key: str, data: bytes) -> dict | None:
    """None where the data are not those that were put under the key."""
    with suppress(ValueError, KeyError, TypeError):
        kept = json.loads(data)
        if kept["xxh3_128"] == digest([key, kept["record"]]):
            return kept["record"]
    return None
