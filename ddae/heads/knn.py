"""Nearest neighbours, the head that needs no fit."""

import math

import torch
from torch import Tensor

from ddae.heads.base import StackedHead
from ddae.heads.kept import Kept
from ddae.scaling import unit_rows
from ddae.streaming import Features, blocks

NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07
SIMILARITIES_AT_ONCE = 2**24


class NearestNeighbours(StackedHead):
    """known: training features [M, D], L2-normalised, or those that are streamed; labels: int64 [M]; classes: the
    numbers that labels have, [K]."""

    labels: Tensor
    classes: Tensor

    def __init__(self, known: Features, labels: Tensor, num_classes: int):
        super().__init__((f"k={NUM_NEIGHBOURS}",))
        if isinstance(known, Tensor):
            self.register_buffer("known", known)
        else:
            self.known = known
        self.register_buffer("labels", labels)
        self.register_buffer("classes", torch.arange(num_classes, device=labels.device))

    def forward(self, features: Tensor) -> Tensor:
        x = unit_rows(features)
        similarity, nearest = x.new_empty(len(x), 0), self.labels.new_empty(len(x), 0)
        for rows, maps in blocks(self.known):
            cosines, places = self._nearest(x, maps if maps.ndim == 2 else unit_rows(maps))
            similarity = torch.cat([similarity, cosines], 1)
            nearest = torch.cat([nearest, places + rows.start], 1)
            if similarity.shape[1] > NUM_NEIGHBOURS:
                similarity, chosen = similarity.topk(NUM_NEIGHBOURS)
                nearest = nearest.gather(1, chosen)
        weights = (similarity / TEMPERATURE).softmax(-1)
        return x.new_zeros(len(x), len(self.classes)).scatter_add_(1, self.labels[nearest], weights)[None]

    def only(self, setting: str) -> "NearestNeighbours":
        if isinstance(self.known, Tensor):
            return self
        rows = torch.cat([unit_rows(maps) for _, maps in blocks(self.known)])  # whoever takes it along takes all of it
        return NearestNeighbours(rows, self.labels, len(self.classes))

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores

    def _nearest(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Those that are nearest to each row of x, at most NUM_NEIGHBOURS: cosines and row numbers, [N, k]."""
        rows_at_once, num = max(1, SIMILARITIES_AT_ONCE // len(known)), min(NUM_NEIGHBOURS, len(known))
        found = [(rows @ known.T).topk(num) for rows in x.split(rows_at_once)]
        return torch.cat([values for values, _ in found]), torch.cat([indices for _, indices in found])

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Version 0.1 kept the labels one-hot, as votes."""
        if (votes := state_dict.pop(f"{prefix}votes", None)) is not None:
            state_dict |= {f"{prefix}labels": votes.argmax(1), f"{prefix}classes": torch.arange(votes.shape[1])}
        super()._load_from_state_dict(state_dict, prefix, *args)


def fit_knn(
    features: Features, labels: Tensor, num_classes: int, seed: int, kept: Kept | None = None
) -> NearestNeighbours:
    """Let the 20 nearest by cosine vote, weighted by softmax(cosine / 0.07), as DINOv2 does (Wu et al. 2018)."""
    known = unit_rows(features) if isinstance(features, Tensor) else features
    return NearestNeighbours(known, labels, num_classes)


def empty_knn(features: Tensor, num_classes: int) -> NearestNeighbours:
    labels = torch.empty(len(features), dtype=torch.int64, device=features.device)
    return NearestNeighbours(features.flatten(1), labels, num_classes)


def knn_memory(shape: tuple[int, ...], num_classes: int) -> tuple[int, int]:
    """Beside the features: the normalised ones, and the cosines of some rows."""
    similarities = 2 * 4 * SIMILARITIES_AT_ONCE
    return 4 * math.prod(shape) + similarities, similarities
