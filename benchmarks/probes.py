"""All settings of a head in one pass against one at a time, and our linear probe against the usual ones.

python benchmarks/probes.py          # about five minutes on one core
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import median
from types import ModuleType
from unittest import mock

import numpy as np
import record
import torch
import tyro
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ddae.backbones import load_backbone
from ddae.datasets import load_dataset
from ddae.features import FeatureKey, extract
from ddae.heads import find_head, linear, mlp
from ddae.pooling import pool
from ddae.probe import to_maps

Data = tuple[Tensor, Tensor]
"""Features float32 [N, C, g, g], labels int64 [N]."""
Predict = Callable[[Tensor], Tensor]
"""Features -> class scores [..., N, K]."""
NUM_CLASSES = 10
RATES = (1e-3, 3e-3, 1e-2)


@dataclass
class Probes:
    backbone: str = "ddpm-fashion-mnist"
    timestep: int = 30
    cells: tuple[tuple[str, int], ...] = (("up.1.1", 1), ("up.0.1", 2), ("up.0.1", 4))
    """(block, pooling); of the embedded backbone these have 64, 512 and 2048 dimensions."""
    device: str = "cpu"
    repeats: int = 3


def main(config: Probes) -> None:
    torch.set_num_threads(1)
    results: dict[str, dict] = {}
    features = extract_all(config)
    for block, grid in config.cells:
        train, val = (
            (pool(maps, grid).to(config.device), labels.to(config.device)) for maps, labels in features[block]
        )
        name = f"D={train[0][0].numel()}"
        results[name] = measure(cases(train), val, config)
        print(f"\n{name} ({block}, {grid}x{grid}), {len(train[1])} training images, {config.device}")
        for case, row in results[name].items():
            print(f"  {case:<46} {row['seconds']:8.3f} s   val {100 * row['val_accuracy']:.1f}")
    record.write("probes" if config.device == "cpu" else f"probes-{config.device}", results)


def cases(train: Data) -> dict[str, Callable[[], list[Predict]]]:
    """What is timed: every case fits its heads and gives them back."""
    whole = mlp.RECIPE
    each_setting = [replace(whole, settings=(setting,)) for setting in whole.settings]
    return {
        "linear, all penalties at once": lambda: [fit("linear", train)],
        "linear, each penalty alone": lambda: [
            fit("linear", train, linear, "PENALTIES", (penalty,)) for penalty in linear.PENALTIES
        ],
        "scikit-learn, each of the same penalties": lambda: scikit_learn(train, linear.PENALTIES),
        "nn.Linear + Adam + DataLoader, each of 3 lr": lambda: [plain_loop(train, rate) for rate in RATES],
        "mlp-256, all learning rates at once": lambda: [fit("mlp", train)],
        "mlp-256, each learning rate alone": lambda: [fit("mlp", train, mlp, "RECIPE", each) for each in each_setting],
    }


def fit(name: str, train: Data, module: ModuleType | None = None, constant: str = "", value: object = None) -> Predict:
    """Fit a head, with another grid of settings than its own where `module.constant` is given a value."""
    head, sizes = find_head(name)
    swap = mock.patch.object(module, constant, value) if module else nullcontext()
    with swap:
        return head.fit(*train, NUM_CLASSES, 0, *sizes)


def measure(cases: dict[str, Callable[[], list[Predict]]], val: Data, config: Probes) -> dict[str, dict[str, float]]:
    """Seconds (median of interleaved repeats) and the best val accuracy of every case."""

    def timed(case: Callable[[], list[Predict]]) -> Callable[[], None]:
        def run() -> None:
            case()
            synchronise(config.device)

        return run

    seconds = record.interleave({name: timed(case) for name, case in cases.items()}, config.repeats)
    return {
        name: {"seconds": median(seconds[name]), "val_accuracy": max(accuracy(p, val) for p in case())}
        for name, case in cases.items()
    }


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def accuracy(predict: Predict, val: Data) -> float:
    """Of the best setting."""
    hits = predict(val[0]).argmax(-1).cpu() == val[1].cpu()
    return hits.double().mean(-1).max().item()


def scikit_learn(train: Data, penalties: tuple[float, ...]) -> list[Predict]:
    x = train[0].flatten(1).cpu().numpy()
    mean, deviation = x.mean(0), x.std(0) + 1e-12
    x, labels = (x - mean) / deviation, train[1].cpu().numpy()
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fits = [LogisticRegression(C=1 / (p * len(x)), max_iter=1000).fit(x, labels) for p in penalties]
    return [
        lambda maps, fit=fit: torch.from_numpy(
            fit.decision_function((maps.flatten(1).cpu().numpy() - mean) / deviation).astype(np.float32)
        )
        for fit in fits
    ]


def plain_loop(train: Data, rate: float) -> nn.Module:
    """The usual script's probe: 15 epochs in batches of 128."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(train[0][0].numel(), NUM_CLASSES)).to(train[0].device)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
    for _ in range(15):
        for maps, labels in DataLoader(TensorDataset(*train), batch_size=128, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(maps), labels).backward()
            optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


def extract_all(config: Probes) -> dict[str, list[Data]]:
    """Train and val features of every block, on a 4x4 grid."""
    backbone = load_backbone(config.backbone)
    dataset = load_dataset("fashion-mnist-8k", backbone.image_size)
    key = FeatureKey("", "", split_seed=0, val_fraction=0.2, noise_seed=0, draw=0, pooling=4)
    blocks = list(dict.fromkeys(block for block, _ in config.cells))
    features: dict[str, list[Data]] = {block: [] for block in blocks}
    for split in ("train", "val"):
        values = extract(backbone, dataset, dataset.splits[split], config.timestep, blocks, key)
        for block, half in values.items():
            channels = next(b.channels for b in backbone.blocks if b.name == block)
            features[block].append((to_maps([half], channels), torch.from_numpy(dataset.labels(split))))
    return features


if __name__ == "__main__":
    main(tyro.cli(Probes, description=__doc__))
