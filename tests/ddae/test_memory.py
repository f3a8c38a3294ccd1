"""How much memory there is for fits."""

import pytest
import torch

from ddae import memory


def test_a_fit_on_the_cpu_has_its_part_of_half_of_the_machine():
    whole = memory.machine_bytes()
    assert 2**28 < whole < 2**50
    assert memory.for_fits("cpu") == int(whole * memory.SHARE)
    assert memory.for_fits("cpu", 0.25) == int(whole * memory.SHARE * 0.25)


def test_the_least_of_all_limits_counts(tmp_path, monkeypatch):
    files = {"max": "max\n", "least": "1000000\n", "more": "2000000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "limits", lambda: [*(tmp_path / name for name in files), tmp_path / "nowhere"])
    assert memory.machine_bytes() == 1_000_000


def test_limits_of_all_groups_that_the_process_lies_in(tmp_path, monkeypatch):
    """As Slurm and systemd have them, in both versions of control groups."""
    groups = tmp_path / "cgroup"
    groups.write_text("0::/system.slice/job_7\n5:memory:/slurm/job_7\n3:cpu:/slurm\n")
    monkeypatch.setattr(memory, "GROUPS", groups)
    found = set(map(str, memory.limits()))
    assert "/sys/fs/cgroup/system.slice/job_7/memory.max" in found
    assert "/sys/fs/cgroup/system.slice/memory.max" in found and "/sys/fs/cgroup/memory.max" in found
    assert "/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes" in found
    assert not any("cpu" in path for path in found)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_runs_out_of_memory(error, expected):
    assert memory.is_out_of_memory(error) == expected
