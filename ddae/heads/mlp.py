"""A multi-layer perceptron with one hidden layer, several learning rates at once."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddae.heads.base import StackedHead, Standardise

LEARNING_RATES = (1e-3, 3e-3)
HIDDEN = 256
BATCH_SIZE = 128
NUM_EPOCHS = 10
MIN_STEPS = 100
"""Few images still get this many updates, so that every rung compares converged heads."""


class StackedMLP(StackedHead):
    """Linear(D, 256)-ReLU-Linear(256, K) on standardised features, one network a learning rate."""

    def __init__(self, standardise: Standardise, num_inputs: int, num_classes: int):
        super().__init__(tuple(f"lr={rate:g}" for rate in LEARNING_RATES))
        self.standardise = standardise
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(num_inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes))
            for _ in LEARNING_RATES
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.scores(self.standardise(features))

    def scores(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self.networks])


def fit_mlp(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> StackedMLP:
    """Cross-entropy by Adam with a cosine schedule; one loss is the sum over the learning rates, whose gradients do
    not mix."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = StackedMLP(Standardise(features), features[0].numel(), num_classes).to(features.device)
    x = head.standardise(features)
    groups = [{"params": n.parameters(), "lr": rate} for n, rate in zip(head.networks, LEARNING_RATES, strict=True)]
    optimizer = torch.optim.Adam(groups)
    steps_per_epoch = max(1, len(x) // BATCH_SIZE)
    num_steps = max(NUM_EPOCHS * steps_per_epoch, MIN_STEPS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    rng = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(num_steps):
        if len(order) < min(BATCH_SIZE, len(x)):
            order = torch.randperm(len(x), generator=rng)
        batch, order = order[:BATCH_SIZE].to(x.device), order[BATCH_SIZE:]
        scores = head.scores(x[batch])
        targets = labels[batch].expand(len(scores), -1)
        loss = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum") / len(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.requires_grad_(False)
