"""How much memory a device has for fits."""

import os
from contextlib import suppress
from pathlib import Path

import torch

SHARE = 0.5
"""The part of a machine's memory that fits may take together."""
LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
"""What a container may have."""


def for_fits(device: str | torch.device, part: float = 1.0) -> int:
    """Bytes that a fit may take which holds this part of a GPU, or of the machine's CPUs."""
    device = torch.device(device)
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else SHARE * machine_bytes()
    return int(part * total)


def machine_bytes() -> int:
    """This machine's memory, or what its container may have of it."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in LIMITS:
        with suppress(OSError, ValueError):
            known.append(int(Path(limit).read_text()))
    return min(known)
