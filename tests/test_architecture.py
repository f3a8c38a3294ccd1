"""The walls of the house, read from its imports, and the sizes that keep it readable."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ddae", "storage", "sweeps")
PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text()) for module, path in PATHS.items()}
COMMANDS = {module for module, path in PATHS.items() if '\nif __name__ == "__main__":' in path.read_text()}
IMPORT, FUNCTION = ast.Import | ast.ImportFrom, ast.FunctionDef | ast.AsyncFunctionDef

NEVER = {
    "ddae": {"storage", "sweeps"},
    "storage": {"ddae", "sweeps"},
    "sweeps.search": {"ddae"},
    "sweeps.cluster": {"ddae"},
    "sweeps.findings": {"diffusers"},
}
"""What a package does not import."""
OF_SWEEPS = {
    "sweeps.search": {"sweeps.search"},
    "sweeps.cluster": {"sweeps.cluster", "sweeps.search.task"},
    "sweeps.findings": {"sweeps.findings", "sweeps.search", "sweeps.flags"},
}
"""All that a package imports of sweeps."""
ONLY_IN = {"ray": "sweeps.cluster", "optuna": "sweeps.search", "mlflow": "storage.tracking"}
"""The one package that imports a library."""
LAZY = {"sweeps.cluster": {"torch"}}
"""What a package imports in functions that workers call, so that it loads without."""

every_module = pytest.mark.parametrize("module", PATHS)


def imports(tree: ast.AST) -> Iterator[str]:
    """The full names of all that is imported in it; `from a import b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} is a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str, packages: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def defined(tree: ast.Module) -> set[str]:
    """The names that a module has: what is imported, defined or assigned at its top level."""
    definitions = [node for node in tree.body if isinstance(node, FUNCTION | ast.ClassDef)]
    others = [each for node in tree.body if node not in definitions for each in ast.walk(node)]
    names = {node.name for node in definitions}
    names |= {alias.asname or alias.name for node in others if isinstance(node, IMPORT) for alias in node.names}
    return names | {node.id for node in others if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def rules(table: dict[str, set[str]], module: str) -> Iterator[set[str]]:
    """Those of the packages that the module is in."""
    yield from (names for package, names in table.items() if inside(module, {package}))


def functions(module: str) -> list[FUNCTION]:
    return [node for node in ast.walk(TREES[module]) if isinstance(node, FUNCTION)]


def loaded_with(module: str) -> set[str]:
    """The modules here that its top-level imports name."""
    names = [name for node in TREES[module].body if isinstance(node, IMPORT) for name in imports(node)]
    return {name if name in PATHS else name.rpartition(".")[0] for name in names} & PATHS.keys()


def test_what_is_imported_exists():
    """Also by tests and benchmarks that CI does not run."""
    here = {name: defined(tree) for name, tree in TREES.items()}
    missing = []
    for path in (
        path for folder in (*PACKAGES, "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
    ):
        for name in set(imports(ast.parse(path.read_text()))) - here.keys():
            module, _, member = name.rpartition(".")
            if inside(name, set(PACKAGES)) and member not in here.get(module, ()):
                missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert missing == []


@every_module
def test_imports_run_one_way(module):
    names = set(imports(TREES[module]))
    for forbidden in rules(NEVER, module):
        assert [name for name in names if inside(name, forbidden)] == []
    for allowed in rules(OF_SWEEPS, module):
        assert [name for name in names if inside(name, {"sweeps"}) and not inside(name, allowed)] == []
    for library, package in ONLY_IN.items():
        assert inside(module, {package}) or [name for name in names if inside(name, {library})] == []


@pytest.mark.parametrize("module", [module for module in PATHS if inside(module, {"sweeps.probing"})])
def test_of_commands_probing_knows_their_flags_alone(module):
    flags = {"sweeps.layer_noise.LayerNoise", "sweeps.label_free.LabelFreeRanking", "sweeps.similarity.Similarity"}
    assert {name for name in imports(TREES[module]) if inside(name, COMMANDS)} <= flags


def test_no_modules_import_each_other():
    TopologicalSorter({module: loaded_with(module) for module in PATHS}).prepare()


@every_module
def test_imports_stand_at_the_top(module):
    """A module beside the commands may have one import in a function, so that a mistake in the flags is found before
    anything heavy is loaded."""
    for function in functions(module):
        if PATHS[module].parent == ROOT / "sweeps":
            assert sum(isinstance(node, IMPORT) for node in ast.walk(function)) <= 1, function.name
        elif inside(module, {"sweeps"}):
            assert set(imports(function)) <= set().union(*rules(LAZY, module)), function.name


@every_module
def test_files_and_functions_are_short(module):
    assert len(PATHS[module].read_text().splitlines()) <= 400
    for function in functions(module):
        assert function.end_lineno - function.lineno < 60, function.name


@every_module
def test_docstrings_are_full_thoughts(module):
    """Those of a class' fields count too: --help shows them."""
    values = [node.value for node in ast.walk(TREES[module]) if isinstance(node, ast.Expr)]
    texts = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    assert [text for text in texts if text.startswith("Of ")] == []


def loaded(code: str) -> set[str]:
    """The modules that a new process has loaded after this code."""
    command = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())


def test_import_ddae_is_light():
    light = loaded("import ddae.probe, ddae.features, ddae.datasets")
    assert {"diffusers", "ray", "mlflow", "optuna", "torchvision"} & light == set()


def test_import_ddae_alone_waits_for_nothing():
    assert {"torch", "numpy", "sklearn"} & loaded("import ddae; ddae.load") == set()


@pytest.mark.parametrize("package", ["search", "findings"])
def test_what_proposes_and_what_chooses_load_neither_ray_nor_diffusers(package):
    modules = [module for module in PATHS if inside(module, {f"sweeps.{package}"})]
    assert {"ray", "diffusers"} & loaded(f"import {', '.join(modules)}") == set()
