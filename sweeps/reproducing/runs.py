"""An entry from its name to its findings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from ddae.nearest import did_you_mean
from storage.ledger import content_key
from storage.tracking import Tracker, check_server, tracking_uri
from sweeps.cli import aligned, check_writable
from sweeps.findings import logged
from sweeps.findings.folder import ANY_LETTER, answered, only_process, write_results
from sweeps.findings.logged import finished_report, incomplete
from sweeps.flags import SEEDS, as_flags, check_numbers
from sweeps.reproduce import Reproduce
from sweeps.reproducing.entry import Entry, Generation, Probe
from sweeps.reproducing.files import DATASETS, MODELS, check_cell, check_there, needed
from sweeps.reproducing.findings import Findings
from sweeps.reproducing.kinds import Measurement, measurement
from sweeps.reproducing.table import ENTRIES

__all__ = ["finished_report", "incomplete", "list_entries", "measure", "set_up"]

TASK = "reproduce"


@dataclass(frozen=True)
class Setup:
    config: Reproduce
    entry: Entry
    measurement: Measurement

    @property
    def folder(self) -> Path:
        """out/reproduce-<entry>-<hash of all that decides its number>."""
        return self.config.out / f"{TASK}-{self.entry.name}-{content_key(measured=self.measurement.key)[:8]}"

    @property
    def differs(self) -> tuple[str, ...]:
        found = [*self.entry.differs, *self.measurement.differs]
        if self.config.precision != "float32":
            found.append(f"forward passes are in {self.config.precision}")
        return tuple(found)

    def estimate(self) -> str:
        """What the entry costs."""
        entry = self.entry
        lines = [
            f"{entry.name}: {entry.published_text} published ({entry.source})",
            f"feature   {self.measurement.feature}",
            f"recipe    {entry.recipe.text}",
            *self.measurement.estimate(),
            *(f"differs:  {each}" for each in self.differs),
        ]
        return "\n".join(lines)


def set_up(config: Reproduce) -> Setup:
    """Find the entry and its files, and load network and images. Raises ValueError for an unknown name, for files that
    are missing, and for what cannot be run."""
    entry = chosen(config)
    model = MODELS[entry.model]
    check_cell(ENTRIES[entry.name], bool(config.block) and config.timestep >= 0)
    check_there(entry, model, config.models, Path(config.data_root))
    paths = [str(config.models / path) for path, _ in model.files]
    text = paths[1] if entry.model == "sd-text" else ""
    return Setup(config, entry, measurement(config, entry, model.backbone.format(*paths[:1]), text))


def chosen(config: Reproduce) -> Entry:
    """The entry of the name, with the feature that the flags give."""
    check_numbers(config, views=(0, 1000), seed=SEEDS, num_samples=(0, 10**9), batch_size=(1, 10**9))
    check_numbers(config, timestep=(-1, 10**6))
    if not config.name:
        raise ValueError("name is missing; give an entry, as ddae-cifar10-edm-linear, or --list for all of them")
    if config.name not in ENTRIES:
        hint = did_you_mean(config.name, ENTRIES)
        raise ValueError(f"name={config.name!r} is no entry{hint}; --list prints all {len(ENTRIES)}")
    if config.views and config.fresh_augmentation:
        raise ValueError(f"views={config.views} and fresh_augmentation=True are two answers to one question; give one")
    entry = ENTRIES[config.name]
    check_read(config, entry)
    given: dict[str, str | int] = {"block": config.block} if config.block else {}
    given |= {"timestep": config.timestep} if config.timestep >= 0 else {}
    if not given:
        return entry
    if isinstance(entry.recipe, Generation):
        raise ValueError(f"{entry.name} samples, and reads no block; leave --block and --timestep out")
    before = getattr(entry.recipe, "block", "")
    cell = ", ".join(f"{name} {value}" for name, value in given.items())
    changed = (f"the feature is what the flags say: {cell}",) if before else (f"its feature was searched: {cell}",)
    return replace(entry, recipe=replace(entry.recipe, **given), differs=(*entry.differs, *changed))  # type: ignore[arg-type]


def check_read(config: Reproduce, entry: Entry) -> None:
    """Raises ValueError for a flag that is given and that entries of this kind do not read."""
    recipe = entry.recipe
    read: set[str] = set()
    if isinstance(recipe, Generation):
        read = {"num_samples", "batch_size"}
    elif isinstance(recipe, Probe):
        read = {"memory", "views", "fresh_augmentation"} if recipe.training else {"memory"}
    for name in ("views", "fresh_augmentation", "num_samples", "batch_size", "memory"):
        if name not in read and getattr(config, name) != getattr(Reproduce, name):
            flag = name.replace("_", "-")
            raise ValueError(f"{entry.name} ({recipe.kind}) does not read --{flag}; leave it out")


def measure(setup: Setup) -> Findings:
    """Run an entry, write what was found, and log it."""
    folder = setup.folder
    with opened(setup) as tracker:
        found = Findings(
            setup.entry, setup.measurement.measure(folder), setup.measurement.feature, setup.differs, folder,
            tracker.where,
        )  # fmt: skip
        with answered(found.text):
            report = folder / "report.txt"
            report.write_text(found.text, **ANY_LETTER)
            note = f"```\n{found.text}\n```"
            logged.keep(folder, tracker, [], found.metrics, note, [report, folder / "config.yaml"])
            write_results(folder, {"task": TASK, "flags": as_flags(setup.config), "answer": found.results})
        logged.log(folder, tracker)
    return found


@contextmanager
def opened(setup: Setup) -> Iterator[Tracker]:
    """The entry's run in MLflow, until the block ends; no other process may run it."""
    check_server(tracking_uri())
    check_writable(setup.folder, setup.config.store)
    name, entry = setup.folder.name, setup.entry
    with only_process(setup.folder), Tracker(tracking_uri(), TASK, name, name) as tracker:
        (setup.folder / "config.yaml").write_text(yaml.safe_dump(as_flags(setup.config)))
        of_entry = {"source": entry.source, "dataset": entry.dataset, "model": entry.model, "kind": entry.recipe.kind}
        more = {"feature": setup.measurement.feature, "recipe": entry.recipe.text, **of_entry}
        tracker.log_params({**as_flags(setup.config), **more})
        yield tracker


def list_entries() -> str:
    """All entries, then their files."""
    rows = [["entry", "source", "published", "tolerance", "kind", "network", "images"]]
    for entry in ENTRIES.values():
        tolerance = f"{entry.tolerance:g}" if entry.published is not None else ""
        what = entry.recipe.kind, entry.model, entry.dataset
        rows.append([entry.name, entry.source, entry.published_text, tolerance, *what])
    files = [["network", "below --models", "where to get it"]]
    for name, model in MODELS.items():
        files += [[name, path, where] for path, where in model.files] or [[name, "no file", model.backbone]]
    images = [["images", "below --data-root", "where to get them"]]
    images += [[name, folder, where] for name, (folder, where) in DATASETS.items()]
    sampled = next(entry for entry in ENTRIES.values() if isinstance(entry.recipe, Generation))
    [inception] = [each for each in needed(sampled, MODELS["wrn"], Path(), Path()) if each[0].suffix == ".pth"]
    files.append(["every FID", str(inception[0]), inception[1]])
    return "\n\n".join("\n".join(aligned(each)) for each in (rows, files, images))
