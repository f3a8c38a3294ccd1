"""What augmentation is worth on cached features: one view, K stored views, and a fresh one every epoch.

    python benchmarks/views.py               # about five minutes on one core

(a) One training loop with as many updates for all: every epoch an image shows a view drawn from its first K (15 epochs,
    Adam, cosine, the better of two learning rates); `fresh` shows another one every epoch, as scripts that run the
    network again do. `plain` is the image as it is.
(b) The project's heads on K views at once, as --views K fits them; plain is its first view.
"""

from dataclasses import dataclass, replace
from statistics import mean, stdev

import numpy as np
import record
import torch
import tyro
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from ddae.backbones import load_backbone
from ddae.datasets import load_dataset
from ddae.features import FeatureKey, extract
from ddae.heads import find_head
from ddae.heads.mlp import mlp
from ddae.pooling import pool
from ddae.probe import standard_error, to_maps
from ddae.scaling import Standardise

EPOCHS = 15
RATES = (1e-3, 3e-3)
VIEWS = {"plain": 1, "1 stored view": 1, "2 stored views": 2, "4 stored views": 4, "8 stored views": 8, "fresh": EPOCHS}


@dataclass(frozen=True)
class Views:
    backbone: str = "ddpm-fashion-mnist"
    dataset: str = "fashion-mnist-8k"
    block: str = "up.0.1"
    timestep: int = 30
    pooling: int = 2
    heads: tuple[str, ...] = ("linear", "mlp-256")
    seeds: int = 5


def main(config: Views) -> None:
    torch.set_num_threads(1)
    views, val, labels, num_classes = features(config)
    num_val = len(labels["val"])
    rows: dict[str, dict[str, float]] = {}
    for head in config.heads:
        hidden = () if head == "linear" else find_head(head)[1]
        for name, num_views in VIEWS.items():
            shown = views[:1] if name == "plain" else views[1 : 1 + num_views]
            accuracies = [trained(shown, val, labels, num_classes, hidden, seed) for seed in range(config.seeds)]
            rows[f"(a) {head}, {name}"] = summary(accuracies, num_val)
        for num_views in (1, 2, 4, 8):
            fit, sizes = find_head(head)
            fitted = fit.fit(views[:num_views].flatten(0, 1), labels["train"].repeat(num_views), num_classes, 0, *sizes)
            hits = (fitted(val).argmax(-1) == labels["val"]).double().mean(1)
            rows[f"(b) {head}, --views {num_views}"] = summary([hits.max().item()], num_val)
    print(f"{config.block}/{config.timestep}/{config.pooling}, {views.shape[1]:,} training and {num_val:,} val images")
    for name, row in rows.items():
        print(f"{name:<32} val {row['accuracy']:5.2f} %   +- {row['seeds']:.2f} seeds   +- {row['images']:.2f} images")
    record.write("views", rows)


def features(config: Views) -> tuple[Tensor, Tensor, dict[str, Tensor], int]:
    """(views [1 + EPOCHS, N, C, g, g] of the training images, the plain one first; val; labels; classes)."""
    backbone = load_backbone(config.backbone)
    dataset = load_dataset(config.dataset, backbone.image_size)
    channels = next(block.channels for block in backbone.blocks if block.name == config.block)
    key = FeatureKey("", "", split_seed=0, val_fraction=0.2, noise_seed=0, draw=0, pooling=4)

    def see(split: str, view: int) -> Tensor:
        one = replace(key, view=view)
        found = extract(backbone, dataset, dataset.splits[split], config.timestep, [config.block], one)
        return pool(to_maps([found[config.block]], channels), config.pooling)

    views = torch.stack([see("train", view) for view in track(range(1 + EPOCHS), "views")])
    labels = {split: torch.from_numpy(dataset.labels(split)) for split in ("train", "val")}
    return views, see("val", 0), labels, dataset.num_classes


def trained(
    views: Tensor, val: Tensor, labels: dict[str, Tensor], num_classes: int, hidden: tuple[int, ...], seed: int
) -> float:
    """Val accuracy of the better learning rate. views: [K, N, C, g, g]; an epoch shows the view of its number where
    there are EPOCHS, else one drawn anew for every image."""
    standardise = Standardise(views[0])
    x, x_val = (standardise(maps).flatten(1) for maps in (views.flatten(0, 1), val))
    num_views, num_images = views.shape[:2]
    accuracies = []
    for rate in RATES:
        torch.manual_seed(seed)
        network = mlp(x.shape[1], hidden, num_classes)
        optimizer = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        for epoch in range(EPOCHS):
            shown = torch.full((num_images,), epoch) if num_views == EPOCHS else torch.randint(num_views, (num_images,))
            for batch in torch.randperm(num_images).split(128):
                scores = network(x[shown[batch] * num_images + batch])
                optimizer.zero_grad()
                functional.cross_entropy(scores, labels["train"][batch]).backward()
                optimizer.step()
            schedule.step()
        with torch.no_grad():
            accuracies.append((network(x_val).argmax(1) == labels["val"]).double().mean().item())
    return max(accuracies)


def summary(accuracies: list[float], num_val: int) -> dict[str, float]:
    """In percent; standard errors over the seeds and over the val images."""
    seeds = stdev(accuracies) / np.sqrt(len(accuracies)) if len(accuracies) > 1 else 0.0
    accuracy = mean(accuracies)
    return {"accuracy": 100 * accuracy, "seeds": 100 * float(seeds), "images": 100 * standard_error(accuracy, num_val)}


if __name__ == "__main__":
    main(tyro.cli(Views, description=__doc__))
