"""The ledger: one small file a finished result, named by the hash of everything that decided it."""

import json
import logging
from contextlib import suppress
from pathlib import Path

import xxhash

from storage.feature_store import published

log = logging.getLogger("storage")


def content_key(**decides: object) -> str:
    """xxh3_128 of the canonical JSON of what decides a result."""
    return digest(decides)


def digest(value: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())


class Ledger:
    """key -> record (a JSON object), append-only, safe for any number of writers of the same key."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def get(self, key: str) -> dict | None:
        """None where there is no sound record; a damaged one is deleted, with one warning."""
        path = self._path(key)
        try:
            kept = json.loads(path.read_bytes())
            if kept["xxh3_128"] == digest([key, kept["record"]]):
                return kept["record"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            pass
        with suppress(FileNotFoundError):
            path.unlink()
            log.warning("damaged result %s; it is deleted and will be made again", path)
        return None

    def put(self, key: str, record: dict) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path) as part:
            part.write_text(json.dumps({"xxh3_128": digest([key, record]), "record": record}))

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"
