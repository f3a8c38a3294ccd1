"""What docs/architecture.md calls the public API is there, under these names and with these parameters."""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from storage.feature_store import FeatureStore
from storage.ledger import Ledger, content_key
from sweeps.findings.answer import Answer
from sweeps.search.task import Result
from tests.test_docs import ROOT, config_of

PAGE = (ROOT / "docs" / "architecture.md").read_text()
API = PAGE[PAGE.index("## Public API") : PAGE.index("## To add")]
SIGNATURES = re.findall(r"^([\w.]+)\((.*?)\) +#", API, re.M)
ROOMS = {
    "layer_noise": "probing",
    "fuse": "fusing",
    "finetune": "finetuning",
    "noisy_classifier": "noisy",
    "noise_ablation": "ablation",
    "transfer": "transferring",
    "feature_learning": "dynamics",
}
"""A command -> the package of its Findings."""


def public(path: str) -> object:
    """The object at a dotted path."""
    names, found = path.split("."), None
    for number, name in enumerate(names):
        if number == 0 or (isinstance(found, ModuleType) and not hasattr(found, name)):
            found = importlib.import_module(".".join(names[: number + 1]))
        else:
            found = getattr(found, name)
    return found


def names_of(of: type) -> set[str]:
    """Fields and properties."""
    fields = {field.name for field in dataclasses.fields(of)}
    return fields | {name for name, value in vars(of).items() if isinstance(value, property)}


@pytest.mark.parametrize(("path", "parameters"), SIGNATURES)
def test_signatures(path, parameters):
    found = inspect.signature(public(path)).parameters.values()
    said = ", ".join(str(each.replace(annotation=inspect.Parameter.empty)) for each in found)
    assert said.replace("'", '"') == parameters  # as ruff writes it on the page


def test_every_sweep_is_listed():
    sweeps = {path.stem for path in (ROOT / "sweeps").glob("*.py") if "\ndef sweep(config" in path.read_text()}
    assert sweeps == set(ROOMS) == {path.split(".")[1] for path, _ in SIGNATURES if path.endswith(".sweep")}


@pytest.mark.parametrize(("command", "room"), ROOMS.items())
def test_configs_and_findings(command, room):
    config = config_of(command)
    assert config.__dataclass_params__.frozen and config.__name__ in API
    rows = "rows" if command == "feature_learning" else "trials"
    of = importlib.import_module(f"sweeps.{room}.findings").Findings
    assert {rows, "folder", "tracked"} <= names_of(of)


def test_what_layer_noise_finds():
    found = importlib.import_module("sweeps.probing.findings").Findings
    assert {"tried", "answer", "cell", "screening", "label_free", "raw_pixels", "cost"} <= names_of(found)
    assert {"cell", "trial", "result", "winner", "best", "cheapest", "tied"} <= names_of(Answer)
    assert {"metrics", "params"} <= names_of(Result)


def test_the_layout_of_the_store(tmp_path):
    store, folder = FeatureStore(tmp_path), "digits/0123456789abcdef"
    store.write(f"{folder}/t=60/split=train/block=mid", 0, np.ones((5, 3), np.float16))
    store.describe(folder, {"noise_seed": 0})
    store.describe_rows(folder, "train", {"image": np.arange(5), "label": np.zeros(5, int)})
    Ledger(tmp_path / "ledger").put(key := content_key(a=1), {"x": 1})
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    [shard] = [name for name in files if name.endswith(".arrow")]
    assert re.fullmatch(rf"{folder}/t=60/split=train/block=mid/00000000-00000005\.[0-9a-f]{{32}}\.arrow", shard)
    others = {f"{folder}/_key.json", f"{folder}/_rows-train.parquet", f"ledger/{key[:2]}/{key}.json"}
    assert others <= files
    table = pa.ipc.open_file(tmp_path / shard).read_all()
    assert table.column_names == ["features"] and table["features"].type == pa.list_(pa.float16(), 3)
    assert pa.parquet.read_table(Path(tmp_path, folder, "_rows-train.parquet")).column_names == ["image", "label"]
