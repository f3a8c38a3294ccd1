"""The independent judge of generated images: a small WRN that classifies Fashion-MNIST, of another architecture than
any diffusion network here, trained on clean images of the official train split alone.

    python benchmarks/judge.py                   # about 20 minutes on one core; goes on where it was stopped
    python benchmarks/judge.py --steps 50        # a smoke test

Writes benchmarks/networks/judge, which ddae.load and `sweeps/sample.py --extractor` read, and its accuracy on the
official test images.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ddae.backbones import Settings, load_backbone
from ddae.datasets import load_images
from ddae.finetune import RECIPES, Cut, CutClassifier, batch_places, cut_network, fresh_head
from ddae.winner import Winner, load
from storage.files import published
from sweeps import cli
from sweeps.cluster.train import FileCheckpoint, train, training_bar
from sweeps.progress import bars

FOLDER = Path(__file__).parent / "networks" / "judge"
NETWORK, CUT = "wrn:10-1", Cut("last", 0, 1, "linear")

CARD = """# Judge: {network} on {dataset}

A wide residual network ({network}, {parameters:,} parameters with its linear head, fp16), trained as a classifier on
the 60,000 clean training images of {dataset} (MIT licence), mirrored at random. Accuracy on the official test images:
**{accuracy:.2%}** (10,000 images, standard error {stderr:.2%}). No test image was used to train or to choose anything.

Use: `ddae.load("benchmarks/networks/judge").predict_proba(images)`, or
`python sweeps/sample.py MODEL --extractor benchmarks/networks/judge`.

Made by `{command}` in {minutes:.0f} minutes on one core: seed {seed}, {steps:,} steps of {batch_size} images, SGD with
momentum, learning rate {learning_rate:g} with cosine decay; mean loss of the last 100 steps {loss:.3f}.
"""


@dataclass(frozen=True)
class Judge:
    """How the judge is trained."""

    dataset: str = "fashion-mnist"
    data_root: str = "data"
    steps: int = 2_000
    """A little more than four epochs."""
    batch_size: int = 128
    learning_rate: float = 0.1
    seed: int = 0
    out: Path = FOLDER
    checkpoint: Path = Path("out/judge.pt")


@dataclass
class JudgeTraining:
    """The order of images and their mirroring depend on (seed, step) alone."""

    config: Judge
    autocast = None
    max_gradient_norm = 1.0
    accumulate = 1

    @property
    def num_steps(self) -> int:
        return self.config.steps

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    @property
    def recipe(self) -> Mapping[str, Any]:
        flags = asdict(self.config)
        return {name: flags[name] for name in ("dataset", "steps", "batch_size", "learning_rate", "seed")}

    def start(self, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        config = self.config
        self.images = load_images(config.dataset, 32, config.data_root)
        backbone, _ = cut_network(load_backbone(NETWORK, Settings(device=str(device))), CUT)
        features = torch.empty(1, backbone.block(CUT.block).channels, 1, 1, device=device)
        head = fresh_head(CUT.head, features, len(self.images.classes), config.seed)
        self.network = CutClassifier(backbone, CUT, head)
        self.optimizer = RECIPES["classifier"].make_optimizer(self.network.parameters(), config.learning_rate, 5e-4)

    def schedule(self, step: int) -> float:
        return RECIPES["classifier"].rate(step, self.num_steps, 1, warmup_steps=min(200, self.num_steps // 2))

    def loss(self, network: nn.Module, step: int) -> Tensor:
        rows = batch_places(self.images.num_train, self.batch_size, step, self.config.seed)
        mirrored = np.random.default_rng([self.config.seed, step, 1]).integers(2, size=len(rows)).astype(bool)
        images = self.images.read(rows).contiguous()
        images[mirrored] = images[mirrored].flip(-1)
        scores = network(self.network.backbone.encode(images).clone())
        return functional.cross_entropy(scores, torch.from_numpy(self.images.labels[rows]).to(scores.device))

    def after_step(self, step: int) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def main(config: Judge) -> None:
    cli.check_writable(config.out, config.checkpoint.parent)
    training = JudgeTraining(config)
    with bars() as progress:
        trained = train(
            training, FileCheckpoint(config.checkpoint), on_progress=training_bar(progress, "judge", config.steps)
        )
    winner = save(config, training)
    images = training.images
    rows = np.arange(images.num_train, len(images.labels))
    accuracy = float((winner.predict(images.read(rows)) == images.labels[rows]).mean())
    measured = {"test_accuracy": accuracy, "test_stderr": (accuracy * (1 - accuracy) / len(rows)) ** 0.5}
    record = json.loads((config.out / "winner.json").read_text())
    (config.out / "winner.json").write_text(json.dumps(record | {"measured": measured}, indent=1) + "\n")
    last, network = trained.losses[-100:], training.network
    card = CARD.format(
        **asdict(config), network=NETWORK, parameters=sum(each.numel() for each in network.parameters()),
        accuracy=accuracy, stderr=measured["test_stderr"], minutes=trained.seconds / 60, loss=sum(last) / len(last),
        command="python benchmarks/judge.py",
    )  # fmt: skip
    (config.out / "README.md").write_text(card)
    print(f"{config.out}: {accuracy:.2%} of {len(rows):,} test images")


def save(config: Judge, training: JudgeTraining) -> Winner:
    """Write the folder, its weights in fp16, and load it as others will."""
    network = training.network.eval().requires_grad_(False)
    weights = (config.out / "weights.safetensors").absolute()
    state = network.network.state_dict()
    halves = {name: each.half() if each.is_floating_point() else each for name, each in state.items()}
    with published(weights) as part:
        save_file({name: each.contiguous() for name, each in halves.items()}, part)
    classes = training.images.classes
    settings = Settings(weights=str(weights))
    winner = Winner(NETWORK, CUT.block, CUT.timestep, CUT.pooling, CUT.head, noised=False, settings=settings)
    winner.take(network.head, training.images.num_train, range(len(classes)), classes).save(config.out)
    return load(config.out, "cpu")


if __name__ == "__main__":
    cli.run(main, Judge, __doc__)
