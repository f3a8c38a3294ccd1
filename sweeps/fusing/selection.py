"""Which features of a sweep go together, in closed form."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from ddae.fusion import Members, gram, members_of, name_of, select, worthwhile
from storage.ledger import Ledger, content_key
from sweeps.probing.space import Cell
from sweeps.probing.task import ProbeTask

VERSION = 1
"""Raise it when other features are selected from the same ones."""


@dataclass(frozen=True)
class Joining:
    """A feature that joined others, and ridge on all that had joined by then, leave-one-out."""

    block: str
    timestep: int
    accuracy: float
    gain: float
    """What it added to the accuracy; the whole of it where it is the first."""
    stderr: float
    """Paired standard error of the gain."""


@dataclass(frozen=True)
class Path:
    """Features in the order in which they joined."""

    num_timesteps: int
    """How many of them they have at most: forward passes an image."""
    joined: tuple[Joining, ...]
    num_worthwhile: int
    """How many joined before the first that added no more than its standard error."""

    @property
    def members(self) -> Members:
        return tuple((each.block, each.timestep) for each in self.joined)


def select_paths(
    task: ProbeTask, timesteps: Sequence[int], pooling: int, num_images: int, most: int
) -> tuple[Path, ...]:
    """Forward selection among all blocks at the timesteps, for one timestep at most, for two, and so on; from the
    ledger, else computed and recorded there.

    num_images: the first of the training images, whose features stand in the store. most: how many may join.
    """
    torch.set_num_threads(1)
    task = replace(task, views=1)  # another view of an image would give it away when it is left out
    key = content_key(
        features=task.source.key.asdict(),
        selected=(task.space.block_names, timesteps, pooling, num_images, most),
        version=VERSION,
        **({"metric": task.metric} if task.metric != "accuracy" else {}),
    )
    ledger = Ledger(task.source.ledger)
    if (record := ledger.get(key)) is None:
        record = {"paths": [asdict(path) for path in _select(task, timesteps, pooling, num_images, most)]}
        ledger.put(key, record)
    return tuple(
        Path(path["num_timesteps"], tuple(Joining(**each) for each in path["joined"]), path["num_worthwhile"])
        for path in record["paths"]
    )


def _select(task: ProbeTask, timesteps: Sequence[int], pooling: int, num_images: int, most: int) -> list[Path]:
    grams, labels = {}, torch.empty(0)
    for timestep in timesteps:
        for block in task.space.blocks:
            if block.size >= pooling:
                cell = Cell(block.name, timestep, pooling, "ridge")
                pooled, labels = task.features(cell, "train", num_images)
                maps = pooled[pooling]
                assert isinstance(maps, torch.Tensor)
                grams[name_of(cell.members)] = gram(maps)
    paths = []
    for limit in range(1, len(timesteps) + 1):

        def may_join(joined: Sequence[str], name: str, limit: int = limit) -> bool:
            return len({timestep for each in (*joined, name) for _, timestep in members_of(each)}) <= limit

        weights = task.weigh(task.labels["train"][:num_images])
        steps = select(grams, labels, task.num_classes, most, may_join, weights=weights)
        joined = tuple(
            Joining(*members_of(step.name)[0], float(step.correct.mean()), step.gain, step.stderr) for step in steps
        )
        paths.append(Path(limit, joined, worthwhile(steps)))
    return paths


def sets_of(task: ProbeTask, paths: Sequence[Path], pooling: int) -> tuple[Members, ...]:
    """What may be read together: the first two and more of each path, and all blocks at the path's timesteps."""
    sets = []
    for path in paths:
        sets += [in_order(task, path.members[:count]) for count in range(2, len(path.joined) + 1)]
        sets.append(all_of(task, path, pooling))
    return tuple(members for members in dict.fromkeys(sets) if len(members) > 1)


def all_of(task: ProbeTask, path: Path, pooling: int) -> Members:
    """All blocks at the path's timesteps."""
    timesteps = dict.fromkeys(timestep for _, timestep in path.members)
    blocks = [block.name for block in task.space.blocks if block.size >= pooling]
    return in_order(task, [(block, timestep) for timestep in timesteps for block in blocks])


def worthwhile_of(task: ProbeTask, path: Path) -> Members:
    """The features that joined before one that added no more than its standard error, two at least."""
    return in_order(task, path.members[: max(2, path.num_worthwhile)])


def in_order(task: ProbeTask, members: Sequence[tuple[str, int]]) -> Members:
    """By timestep, then by block, so that a set has one name."""
    return tuple(sorted(members, key=lambda member: (member[1], task.space.block_names.index(member[0]))))
