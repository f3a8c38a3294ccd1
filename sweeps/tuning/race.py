"""Which places stay in the race: the cheap looks before any head is trained."""

from dataclasses import dataclass

import numpy as np

from sweeps.tuning.plan import Plan
from sweeps.tuning.space import Need, Places

Look = dict[int, dict[str, np.ndarray]]
"""timestep -> block -> bool [num_images]: which images leave-one-out ridge gets right."""
CLEARLY = 2.0
"""A place leaves the race when it is worse than the best by so many standard errors of their difference."""


@dataclass(frozen=True)
class Race:
    """Every look, on growing numbers of images at ever fewer places, and the places that are left."""

    looks: list[Look]
    places: Places

    def after(self, looks: dict[Need, np.ndarray], num_timesteps: int | None) -> "Race":
        """After one more look, answers to needs of one block each. num_timesteps: how many may stay; None for all."""
        look: Look = {}
        for need, right in looks.items():
            look.setdefault(need.timestep, {})[need.blocks[0]] = right
        places = self.places if num_timesteps is None else survivors(look, num_timesteps)
        return Race([*self.looks, look], places)

    def accuracy(self, plan: Plan) -> np.ndarray:
        """Of leave-one-out ridge at the first look, [blocks, timesteps]; NaN where it did not look."""
        table = np.full((len(plan.space.blocks), len(plan.space.timesteps)), np.nan)
        for timestep, blocks in self.looks[0].items():
            for row, block in enumerate(plan.space.blocks):
                table[row, plan.space.timesteps.index(timestep)] = blocks[block.name].mean()
        return table

    def ranked(self) -> list[tuple[str, int]]:
        """The (block, timestep) still in the race, best at the last look first."""
        last = self.looks[-1]
        left = [(block, timestep) for timestep, blocks in self.places.items() for block in blocks]
        return sorted(left, key=lambda place: -last[place[1]][place[0]].mean())

    def needs(self, plan: Plan) -> list[Need]:
        return [
            Need(timestep, "train", num_images, tuple(blocks))
            for num_images, look in zip(plan.looks, self.looks, strict=True)
            for timestep, blocks in look.items()
        ]

    def val_needs(self, plan: Plan) -> list[Need]:
        """Of the trials, whichever they are."""
        return [Need(timestep, "val", plan.num_val, blocks) for timestep, blocks in self.places.items()]


def survivors(look: Look, num_timesteps: int) -> Places:
    """The best num_timesteps timesteps, each with those of its blocks that are not clearly worse than the best of them
    all; differences are paired, image by image.

    A timestep stands where its three best blocks stand on average, which is less noisy than the best alone.
    """
    standing = {timestep: best_three([right.mean() for right in at.values()]) for timestep, at in look.items()}
    kept = sorted(standing, key=lambda timestep: -standing[timestep])[:num_timesteps]
    best = max((right for timestep in kept for right in look[timestep].values()), key=np.mean)
    return {
        timestep: tuple(block for block, right in look[timestep].items() if not clearly_worse(right, best))
        for timestep in sorted(kept)
        if any(not clearly_worse(right, best) for right in look[timestep].values())
    }


def best_timesteps(plan: Plan, ranking: np.ndarray) -> Places:
    """Those that stay after a first cut by a label-free ranking, [blocks, timesteps], with all of their blocks: by the
    same standing as ridge gives them, but nothing tells which block is clearly worse."""
    standing = {t: best_three(list(ranking[:, column])) for column, t in enumerate(plan.space.timesteps)}
    kept = sorted(standing, key=lambda timestep: -standing[timestep])[: plan.num_kept(0)]
    return {timestep: blocks for timestep, blocks in plan.space.places.items() if timestep in kept}


def best_three(accuracies: list[float]) -> float:
    return float(np.mean(sorted(accuracies)[-3:]))


def clearly_worse(right: np.ndarray, best: np.ndarray) -> bool:
    deficit = best.astype(float) - right.astype(float)
    return bool(deficit.mean() > CLEARLY * deficit.std() / len(deficit) ** 0.5)
