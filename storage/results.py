"""The ledger: one small file a finished result, named by the hash of everything that decided it."""

import json
from pathlib import Path

import xxhash

from storage.feature_store import published


def content_key(**decides: object) -> str:
    """xxh3_128 of the canonical JSON of what decides a result."""
    return xxhash.xxh3_128_hexdigest(json.dumps(decides, sort_keys=True).encode())


class Ledger:
    """key -> record (a JSON object), append-only, safe for any number of writers of the same key."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def get(self, key: str) -> dict | None:
        try:
            return json.loads(self._path(key).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:  # a damaged record is made again
            self._path(key).unlink(missing_ok=True)
            return None

    def put(self, key: str, record: dict) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path) as part:
            part.write_text(json.dumps(record))

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"
