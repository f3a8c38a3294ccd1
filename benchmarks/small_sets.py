"""How the answer of a small set is best chosen: the best cell, the cheapest of those tied with it, or a shrunk one.

    npm pack emoji-datasource-twitter && tar xzf emoji-datasource-twitter-*.tgz
    python benchmarks/small_sets.py --emoji package      # 20 splits of each set, goes on where it was stopped

Digits, 1,000 images of the shipped set, and emoji in colour by their category, all read by the shipped network. A rule
chooses among the cells that the default search has fitted on all images, on one half of val, and is judged on images
that chose nothing, the other half and test, in paired differences over the splits.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import record
import tyro
from PIL import Image
from play import JUDGES
from search_cost import METHODS, RULES, SearchCost, mean_and_error, play_all

from ddae.datasets import load_dataset


@dataclass(frozen=True)
class SmallSets:
    emoji: Path | None = None
    """Folder of the unpacked npm package emoji-datasource-twitter; without it the two others are measured."""
    seeds: int = 20
    folder: Path = Path("data/small_sets")
    """Where image folders are made."""
    store: str = "store"


def main(config: SmallSets) -> None:
    sets = {"digits": "digits", "1,000 shipped images": str(shipped(config.folder / "fashion"))}
    if config.emoji:
        sets["emoji"] = str(emoji(config.emoji, config.folder / "emoji"))
    results = {}
    for name, dataset in sets.items():
        flags = SearchCost(dataset=dataset, store=config.store, seeds=config.seeds, methods=tuple(METHODS)[:1])
        task, played = play_all(flags)
        regret = {rule: np.array([[one.regret[rule][judge] for judge in JUDGES] for one in played]) for rule in RULES}
        print(f"{name}: {task.num_train:,} train, {task.num_val:,} val, {len(task.labels['test']):,} test images")
        results[name] = {"played": [asdict(one) for one in played]}
        for rule in RULES:
            for number, judge in enumerate(JUDGES):
                lost = mean_and_error(list(regret[rule][:, number]))
                more = mean_and_error(list(regret[rule][:, number] - regret["best"][:, number]))
                print(
                    "  {:<9} on {:<11} {:5.2f} +- {:4.2f} lost; {:5.2f} +- {:4.2f} more than by the best".format(
                        rule, judge, *lost, *more
                    )
                )
                results[name][f"{rule}, {judge}"] = {"regret": lost, "more than the best": more}
        record.write("small_sets", results)


def shipped(folder: Path) -> Path:
    """The first 100 training images of every class of the shipped set."""
    dataset = load_dataset("fashion-mnist-8k", 32, "data", 0)
    labels = dataset.images.labels[: dataset.images.num_train]
    for label, name in enumerate(dataset.images.classes):
        rows = np.flatnonzero(labels == label)[:100]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for row, pixels in zip(rows, dataset.images.read(rows), strict=True):
            Image.fromarray(pixels[0].numpy()).save(folder / name / f"{row:05}.png")
    return folder


def emoji(package: Path, folder: Path) -> Path:
    """Pictures of 64 pixels by their category, without the skin tones."""
    for each in json.loads((package / "emoji.json").read_text()):
        if each["has_img_twitter"] and each["category"] != "Component":
            target = folder / each["category"].replace(" & ", "-")
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(package / "img/twitter/64" / each["image"], target)
    return folder


if __name__ == "__main__":
    main(tyro.cli(SmallSets, description=__doc__))
