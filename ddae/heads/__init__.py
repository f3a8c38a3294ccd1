"""Heads that classify a frozen feature. Their names are family or family-size-size, as the papers write them: linear,
mlp-256."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ddae import ridge
from ddae.heads import attention, cnn, efficient, mlp, recipes
from ddae.heads.attention import attention_memory, empty_attention, fit_attention
from ddae.heads.attentive import attentive_memory, empty_attentive, fit_attentive
from ddae.heads.average import average_memory, empty_average, fit_average
from ddae.heads.base import Empty, Fit, Head, StackedHead
from ddae.heads.cnn import cnn_memory, empty_cnn, fit_cnn
from ddae.heads.efficient import efficient_memory, empty_efficient, fit_efficient
from ddae.heads.joint import empty_joint, fit_joint, fit_joint_ridge, joint_memory, joint_ridge_memory
from ddae.heads.kept import Kept
from ddae.heads.knn import empty_knn, fit_knn, knn_memory
from ddae.heads.linear import COSTS, PENALTIES, empty_linear, fit_linear, fit_logistic, fit_ridge, linear_memory
from ddae.heads.mlp import empty_mlp, fit_mlp, mlp_memory
from ddae.heads.recipes import bn_linear_memory, ddae_memory, empty_bn_linear, empty_ddae, fit_bn_linear, fit_ddae
from ddae.heads.stacked import fit_stacked, stacked_memory
from ddae.heads.training import Recipe, memory, train
from ddae.nearest import did_you_mean
from ddae.streaming import Features

HEADS: dict[str, Head] = {
    "ridge": Head(fit_ridge, empty_linear, partial(linear_memory, len(ridge.PENALTIES))),
    "linear": Head(fit_linear, empty_linear, partial(linear_memory, len(PENALTIES))),
    "logistic": Head(fit_logistic, empty_linear, partial(linear_memory, len(COSTS))),
    "knn": Head(fit_knn, empty_knn, knn_memory, takes_all=True),
    "ddae": Head(fit_ddae, empty_ddae, ddae_memory, parts=recipes.plain),
    "bn-linear": Head(fit_bn_linear, empty_bn_linear, bn_linear_memory, parts=recipes.batch_normalised),
    "mlp": Head(fit_mlp, empty_mlp, mlp_memory, sizes=((256,),), more_sizes=True, parts=mlp.parts),
    "cnn": Head(fit_cnn, empty_cnn, cnn_memory, sizes=((64, 64),), min_grid=4, parts=cnn.parts),
    "attention": Head(
        fit_attention,
        empty_attention,
        attention_memory,
        sizes=((1,), (2,)),
        min_grid=2,
        largest=1000,
        parts=attention.parts,
    ),
    "efficient": Head(
        fit_efficient,
        empty_efficient,
        efficient_memory,
        sizes=((8,),),
        min_grid=2,
        largest=1000,
        parts=efficient.parts,
    ),
}

FUSIONS: dict[str, Head] = {
    "joint": Head(fit_joint, empty_joint, joint_memory, version=HEADS["linear"].version),
    "joint-ridge": Head(fit_joint_ridge, empty_joint, joint_ridge_memory, version=HEADS["ridge"].version),
    "stacked": Head(
        fit_stacked, empty_joint, stacked_memory, version=HEADS["ridge"].version + HEADS["linear"].version - 1
    ),
    "average": Head(
        fit_average, empty_average, average_memory, ((256,),), more_sizes=True, version=HEADS["mlp"].version + 1
    ),
    "attentive": Head(fit_attentive, empty_attentive, attentive_memory, sizes=((8,),), min_grid=2, largest=1000),
}
"""Heads that read several blocks, or timesteps, at once: their features come as one map [N, sum of C_i, g, g], and the
first of their sizes is the channels (C_1, C_2, ...). Their versions follow those of the heads that they are made of."""


def find_head(name: str, channels: Sequence = ()) -> tuple[Head, tuple]:
    """Look up `cnn-64-64` as (HEADS["cnn"], (64, 64)); a family alone means its first default sizes.

    channels: of the blocks that are read together, if any; then FUSIONS are found as well.
    """
    family, sizes = _parse(name, HEADS | FUSIONS if channels else HEADS)
    if family in FUSIONS:
        return FUSIONS[family], (tuple(channels), *(sizes or FUSIONS[family].sizes[0]))
    return HEADS[family], sizes or HEADS[family].sizes[0]


def check_recipe(name: str) -> None:
    """Raises ValueError for a head that no Recipe trains."""
    if not find_head(name)[0].parts:
        trained = ", ".join(family for family, head in HEADS.items() if head.parts)
        raise ValueError(f"head={name!r} is not trained by a recipe; those that are: {trained}")


def fit_by(
    recipe: Recipe, name: str, features: Features, labels: Tensor, num_classes: int, seed: int, kept: Kept | None = None
) -> StackedHead:
    """Train a head by a recipe instead of its own. name: as find_head takes it."""
    check_recipe(name)
    head, sizes = find_head(name)
    assert head.parts
    return train(*head.parts(features, num_classes, *sizes), features, labels, seed, recipe, kept)


def memory_by(
    recipe: Recipe | None, name: str, channels: Sequence[int], shape: tuple[int, ...], num_classes: int
) -> tuple[int, int]:
    """What Head.memory gives, of a head that is trained by a recipe if there is one."""
    head, sizes = find_head(name, channels)
    if recipe and head.parts:
        return memory(head.parts, recipe, shape, num_classes, *sizes)
    return head.memory(shape, num_classes, *sizes)


def restore(
    name: str,
    shape: tuple[int, ...],
    num_classes: int,
    tensors: dict[str, Tensor],
    setting: str,
    channels: Sequence[int] = (),
) -> StackedHead:
    """Rebuild the fit of one setting from its state_dict; shape is that of the features it was fitted on, [N, C, g, g].
    channels: as find_head takes them.

    Raises ValueError if the tensors do not fit such a head.
    """
    family, sizes = find_head(name, channels)
    head = family.empty(torch.empty(shape, device="meta"), num_classes, *sizes)
    try:
        head.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"head={name!r} has other tensors: {' '.join(str(error).split())}") from error
    head.settings = (setting,)
    return head


def expand(names: Iterable[str], known: Mapping[str, Head] = HEADS) -> tuple[str, ...]:
    """List the heads to try: a family without sizes becomes all its default ones, and duplicates are dropped."""
    heads = []
    for name in names:
        family, sizes = _parse(name, known)
        heads += [_join(family, each) for each in ([sizes] if sizes else known[family].sizes)]
    return tuple(dict.fromkeys(heads))


def _parse(name: str, known: Mapping[str, Head]) -> tuple[str, tuple[int, ...]]:
    """Split a name into family and sizes, () if it has none. Raises ValueError for an unknown family or wrong sizes."""
    family = re.sub(r"(-\d+)+$", "", name)
    sizes = tuple(map(int, name.removeprefix(family).split("-")[1:]))
    if family not in known:
        raise ValueError(
            f"head={name!r} is not known; allowed: {', '.join(known)} (with sizes: mlp-256, cnn-64-64)"
            f"{did_you_mean(family, known)}"
        )
    head = known[family]
    count = len(head.sizes[0])
    is_many = len(sizes) == count or (len(sizes) > count and head.more_sizes)
    if sizes and not (is_many and 1 <= min(sizes) <= max(sizes) <= head.largest):
        few = f"{count} or more" if head.more_sizes else f"exactly {count}" if count else "no"
        plural = "size" if few == "exactly 1" else "sizes"
        example = _join(family, head.sizes[0])
        each = f", each from 1 to {head.largest:,}" if count else ""
        raise ValueError(f"head={name!r}: {family} takes {few} {plural}{each}, as in {example}")
    return family, sizes


def _join(family: str, sizes: tuple[int, ...]) -> str:
    return "-".join([family, *map(str, sizes)])


__all__ = [
    "FUSIONS",
    "HEADS",
    "Empty",
    "Fit",
    "Head",
    "Kept",
    "Recipe",
    "StackedHead",
    "check_recipe",
    "expand",
    "find_head",
    "fit_by",
    "memory_by",
    "restore",
]
