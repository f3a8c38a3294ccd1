"""How much memory a device has for fits."""

import os
from contextlib import suppress
from pathlib import Path

import torch

SHARE = 0.5
"""The part of a machine's memory that fits may take together."""
GROUPS = Path("/proc/self/cgroup")
NO_ROOM = "can't allocate memory", "ALLOC_FAILED"
"""What the RuntimeErrors say of PyTorch's allocator on the CPU, and of CUDA's libraries."""


def for_fits(device: str | torch.device, part: float = 1.0) -> int:
    """Bytes that a fit may take which holds this part of a GPU, or of the machine's CPUs."""
    device = torch.device(device)
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else SHARE * machine_bytes()
    return int(part * total)


def machine_bytes() -> int:
    """This machine's memory, or what this process may have of it in its container, or as a job of Slurm."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in limits():
        with suppress(OSError, ValueError):
            known.append(int(limit.read_text()))
    return min(known)


def limits() -> list[Path]:
    """The files that may say what the process' control group, and those that it lies in, may have (cgroups 2 and 1)."""
    groups = ["0::/", "0:memory:/"]
    with suppress(OSError):
        groups += GROUPS.read_text().splitlines()
    found = []
    for _, kinds, group in (line.split(":", 2) for line in groups):
        if kinds in ("", "memory"):
            root, name = ("memory", "memory.limit_in_bytes") if kinds else ("", "memory.max")
            inside = Path("/sys/fs/cgroup", root, group.lstrip("/"))
            found += [folder / name for folder in (inside, *inside.parents)]
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no room for a tensor."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in NO_ROOM)
