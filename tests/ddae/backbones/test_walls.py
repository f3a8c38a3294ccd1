"""Families share what base, unets, schedules and the like hold, and know nothing of each other."""

import ast
import sys
from pathlib import Path

import pytest

from ddae.backbones import BACKBONES, LIBRARIES, OFFICIAL, generic

LOADERS = [*BACKBONES.values(), *OFFICIAL.values(), *LIBRARIES.values(), generic.load]
FAMILIES = sorted({loader.__module__ for loader in LOADERS} - {"ddae.backbones"})  # load_random is of all of them


def imported(module: str) -> set[str]:
    """Modules that a file imports, at its top or inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(Path(sys.modules[module].__file__).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_imports_another_or_the_table_that_names_them(family):
    assert len(FAMILIES) > 5
    assert not imported(family) & {*FAMILIES, "ddae.backbones"}
