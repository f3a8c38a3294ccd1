"""Accuracy against the number of labels for a network that is fine-tuned, trained from scratch, and frozen.

    python benchmarks/finetuning.py                      # the shipped pair; its first sweep took an hour
    python benchmarks/finetuning.py --dataset digits     # its first sweep took eight minutes

layer_noise.py chooses the cell on all images, the cheapest of those tied with the best, and finetune.py runs at it: the
same pooling and head for every start, a search over learning rates for each start and number of labels, and several
seeds of the best. Besides, on the last number of labels but one: which timestep the network is told, with images as
they are and noised; where it is cut; whether training from scratch for twice as long is better; and a small supervised
network. Stop it at any time: the same command goes on.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import record
import tyro

from sweeps.finetune import Finetune, sweep
from sweeps.finetuning.findings import Findings
from sweeps.finetuning.publish import results
from sweeps.layer_noise import LayerNoise
from sweeps.layer_noise import sweep as find_cell


@dataclass(frozen=True)
class Finetuning:
    dataset: str = "fashion-mnist-8k"
    labels: tuple[int, ...] = (100, 300, 1000, 4800)
    epochs: tuple[int, ...] = (100, 50, 20, 8)
    scratch_epochs: tuple[int, ...] = (200, 100, 60, 20)
    augment: tuple[str, ...] = ("flip+crop", "none")
    seeds: int = 3
    baseline: tuple[str, ...] = ("wrn:16-1",)
    out: Path = Path("out/benchmark")


DIGITS = Finetuning("digits", (30, 300, 1000), (100, 50, 20), (400, 100, 60), ("crop", "none"))


def main(config: Finetuning) -> None:
    if config.dataset == "digits":
        config = replace(DIGITS, seeds=config.seeds, out=config.out)
    where = {"out": config.out, "store": str(config.out / "store")}
    found = find_cell(LayerNoise(dataset=config.dataset, search_images="all", prefer="cheapest", **where))
    cell = found.cell
    flags = Finetune(
        sweep=found.folder, num_labels=config.labels, epochs=config.epochs, scratch_epochs=config.scratch_epochs,
        learning_rates=(1e-5, 1e-4, 1e-3), batch_size=50 if config.dataset != "digits" else 30, num_trials=8,
        seeds=config.seeds, augment=config.augment, **where,
    )  # fmt: skip
    longer = 2 * config.scratch_epochs[-2]
    one = {"num_labels": config.labels[-2:-1], "epochs": config.epochs[-2:-1], "seeds": 1}
    one |= {"scratch_epochs": config.scratch_epochs[-2:-1]}
    short = replace(flags, init=("finetune",), learning_rates=(1e-4,), head_start=("probe",), augment=("none",), **one)
    blocks = found.task.space.block_names
    cuts = blocks[blocks.index(cell.block) :][:3] if blocks.index(cell.block) + 3 < len(blocks) else blocks[-4:-1]
    told = tuple(sorted({0, cell.timestep, 300}))
    sweeps = {
        "labels": flags,
        "timestep": replace(short, tell=told),
        "timestep, noised": replace(short, tell=told, noised=True),
        "cut": replace(short, cut=tuple(cuts)),
        "scratch, twice as long": replace(flags, init=("scratch",), **one | {"scratch_epochs": (longer,)}),
        "baseline": replace(flags, init=("frozen",), baseline=config.baseline, **one),
    }
    written = {}
    for name, each in sweeps.items():
        written[name] = results(keep(sweep(each), config.dataset, name), each)
        record.write(f"finetuning_{config.dataset.replace('-', '_')}", written)


def keep(found: Findings, dataset: str, name: str) -> Findings:
    """Copy the sweep's figures to the results."""
    for file in (found.folder / "figures").glob("*.png"):
        target = f"finetuning_{dataset}_{name}_{file.stem}".replace("-", "_").replace(", ", "_").replace(" ", "_")
        shutil.copy(file, record.RESULTS / f"{target}.png")
    print((found.folder / "report.txt").read_text())
    return found


if __name__ == "__main__":
    main(tyro.cli(Finetuning, description=__doc__))
