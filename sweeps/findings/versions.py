"""What made the numbers: versions of the code and of what it stands on."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = "torch", "diffusers", "ray", "optuna", "numpy"
ROOT = Path(__file__).parents[2]


def versions(**inputs: str) -> dict[str, str]:
    """inputs: fingerprints of what went in, by name."""
    return {
        "ddae-sweeps": own_version(),
        **inputs,
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def own_version() -> str:
    return f"{version('ddae-sweeps')}{commit()}"


def commit() -> str:
    """The commit of the clone that the code runs from, if it is one."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f" ({found.stdout.strip()})"
