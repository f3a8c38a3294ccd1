"""The state of a trial on its way through the rungs, kept in the store."""

import logging
from contextlib import suppress
from pathlib import Path

import xxhash

from storage.files import published
from storage.remote import Remote, is_address

log = logging.getLogger("storage")


class StoredCheckpoint:
    """Bytes under a key, replaced as a whole; a checksum stands before them.

    root: the store's folder or address; at an address nothing is kept on this machine.
    """

    def __init__(self, root: str | Path, key: str):
        self.remote = Remote(str(root)) if is_address(root) else None
        self.name = f"checkpoints/{key[:2]}/{key}"
        self.path = (self.remote.cache if self.remote else Path(root)) / self.name

    def load(self) -> bytes | None:
        """What save() kept last; None where there is nothing sound."""
        with suppress(FileNotFoundError):
            kept = self.remote.read(self.name).to_pybytes() if self.remote else self.path.read_bytes()
            if kept[:16] == xxhash.xxh3_128_digest(kept[16:]):
                return kept[16:]
            where = f"{self.name} of {self.remote.address}" if self.remote else self.path
            log.warning("damaged checkpoint %s; the trial begins again", where)
        return None

    def save(self, state: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with published(self.path) as part:
            part.write_bytes(xxhash.xxh3_128_digest(state) + state)
            if self.remote:
                self.remote.put(self.name, part)
        if self.remote:
            self.path.unlink()
