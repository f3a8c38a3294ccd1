"""What the README and the pages under docs/ say can be followed: files, commands, flags, links."""

import ast
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest

from sweeps import cli
from sweeps.pretrain import Pretrain
from sweeps.recipes import RECIPES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((ROOT / "docs").glob("*.md"))
HISTORY = {"log.md", "scale.md"}
"""Pages that record commands as they were then."""
END = re.compile(r"`|#|&&|\n\n|'|\)|\n *(?=[A-Z]\w*=\S* )?(?=python |pytest |ray |mlflow )")
LINE = re.compile(r"^ {4}(?:\S+=\S+ )*python (sweeps/\w+\.py)(.*)$", re.M)
"""A command of a block of code."""
FIRST = {"sweeps/sample.py": "--backbone", "sweeps/reproduce.py": "--name"}
"""Flags whose value may stand alone."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """The headings as GitHub links them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def config_of(command: str) -> type:
    """The dataclass that a command's flags fill."""
    [call] = [
        node
        for node in ast.walk(ast.parse((ROOT / "sweeps" / f"{command}.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "cli.run"
    ]
    return getattr(importlib.import_module(f"sweeps.{command}"), ast.unparse(call.args[1]))


def flags_of(config: type) -> set[str]:
    names = {field.name.replace("_", "-") for field in dataclasses.fields(config)}
    return names | {f"no-{name}" for name in names} | {"help", "version", "config"}


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@every_page
def test_commands_are_there_and_take_their_flags(page):
    text = page.read_text()
    for found in re.finditer(r"(?<![\w/])(sweeps|benchmarks)/(\w+)\.py\b", text):
        script = ROOT / found[0]
        assert script.exists(), found[0]
        if found[1] == "sweeps" and page.name not in HISTORY and text[: found.start()].endswith("python "):
            command = END.split(text[found.end() :], maxsplit=1)[0]
            flags = re.findall(r"--([a-z][\w-]*)", re.sub(r'"[^"]*"', "", command))  # in quotes are another command's
            assert set(flags) <= flags_of(config_of(found[2])), f"{found[0]}: {flags}"


def test_commands_of_every_help_and_page_are_understood():
    texts = [page.read_text() for page in PAGES if page.name not in HISTORY]
    texts += [path.read_text() for path in (ROOT / "sweeps").glob("*.py")]
    commands = [found.groups() for text in texts for found in LINE.finditer(re.sub(r"\\+\n", "", text))]
    assert len(commands) > 60
    for script, rest in dict.fromkeys(commands):
        args = shlex.split(re.sub("<.*?>", "it", rest.split("&&")[0]), comments=True)
        if script in FIRST and args and not args[0].startswith("-"):
            args.insert(0, FIRST[script])
        config = config_of(Path(script).stem)
        cli.parse(config, args, "", RECIPES if config is Pretrain else None)


def test_every_command_stands_on_the_front_page():
    named = set(re.findall(r"`(\w+)\.py`", (ROOT / "README.md").read_text()))
    assert {path.stem for path in (ROOT / "sweeps").glob("*.py") if "\n    cli.run(" in path.read_text()} == named


def test_ci_runs_the_test_command_of_the_front_page():
    last = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert f"```bash\n{last}\n```" in (ROOT / "README.md").read_text()


def test_every_command_says_its_version(monkeypatch, capsys):
    config = config_of("label_free")
    monkeypatch.setattr("sys.argv", ["label_free.py", "--version"])
    cli.run(lambda config: pytest.fail("it ran"), config, None)
    assert re.fullmatch(r"ddae-sweeps \d+\.\d+\.\d+.*\n", capsys.readouterr().out)
