"""The head of an answer, kept in the store once it is fitted: what shows, tests or hands over the answer fits it no
second time."""

import copy
import io
import logging
from typing import TYPE_CHECKING

import torch

from ddae.heads import find_head, restore
from ddae.probe import Fitted
from storage.checkpoints import StoredCheckpoint
from storage.ledger import content_key

if TYPE_CHECKING:
    from sweeps.probing.task import ProbeTask, Read

log = logging.getLogger("sweeps")


def keep(task: "ProbeTask", cell: "Read", fitted: Fitted) -> None:
    """Keep the best setting of a cell's head, fitted on all training images; not one that holds all of these."""
    family, _ = find_head(cell.head, task.channels(cell))
    if family.takes_all:
        return
    head, buffer = copy.deepcopy(fitted.head.only(fitted.setting)).cpu(), io.BytesIO()
    on_val = {"correct": torch.from_numpy(fitted.correct), "predicted": torch.from_numpy(fitted.predicted)}
    torch.save({"setting": fitted.setting, "tensors": head.state_dict(), **on_val}, buffer)
    try:
        _place(task, cell).save(buffer.getvalue())
    except OSError as error:
        log.warning(f"the head of {cell.name} is not kept ({error.strerror or error}); it will be fitted again")


def find(task: "ProbeTask", cell: "Read") -> Fitted | None:
    """What keep() has kept, with its one setting; None where there is nothing sound."""
    if (kept := _place(task, cell).load()) is None:
        return None
    state = torch.load(io.BytesIO(kept), map_location=task.device, weights_only=True)
    channels = task.channels(cell)
    shape = task.views * task.num_train, sum(channels), cell.pooling, cell.pooling
    head = restore(cell.head, shape, task.num_classes, state["tensors"], state["setting"], channels)
    return Fitted(head, 0, state["correct"].cpu().numpy(), state["predicted"].cpu().numpy())


def _place(task: "ProbeTask", cell: "Read") -> StoredCheckpoint:
    return StoredCheckpoint(task.source.store, content_key(fitted=task.key(cell, task.num_train)))
