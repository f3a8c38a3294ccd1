import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"ddae": {"ddae"}, "storage": {"storage"}, "sweeps": {"ddae", "storage", "sweeps"}}
SOURCES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    where = path.relative_to(ROOT)
    names = imported(path)
    assert not (names & set(ALLOWED)) - ALLOWED[where.parts[0]]
    if where.parts[:2] != ("sweeps", "tuning"):
        assert not names & {"ray", "optuna"}
    if where != Path("storage/tracking.py"):
        assert "mlflow" not in names


def test_import_ddae_is_light():
    code = "import ddae.probe, ddae.features, ddae.datasets, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"diffusers", "ray", "mlflow", "optuna", "torchvision"} & set(loaded)


def test_import_ddae_alone_waits_for_nothing():
    code = "import ddae, sys; print(ddae.load, *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "sklearn"} & set(loaded)
