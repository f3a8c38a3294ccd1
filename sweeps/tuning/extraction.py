"""Extractors on every device of the cluster, and the features they are asked for."""

import asyncio
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ObjectLostError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.tuning.extractor import Extractor, Work, num_shards
from sweeps.tuning.plan import Plan
from sweeps.tuning.space import Need

MAX_DEATHS = 20
"""Of the processes or machines that work on one thing, before it is thought to kill them."""
GROW_SECONDS = 5
"""Between two looks at what the cluster has."""
MAX_REQUESTED = 1000
"""Devices that the autoscaler is asked for."""

log = logging.getLogger("sweeps")


class Extraction:
    """As many extractors as the cluster has devices at the time: GPUs, or shares of them, or CPUs, of which they hold
    none, because heads are fitted there as well.

    A call goes to the first that is free. One whose process or machine dies is forgotten: another gets its call, and
    its device a new one. So machines may come and go. No two extractors are ever asked for one shard at a time.

    told: hears of every call that has ended.
    """

    def __init__(self, plan: Plan, told: Callable[[Work], None]):
        self.plan, self.told = plan, told
        self._plan = ray.put(plan)  # its labels are millions of bytes
        self._device = "GPU" if plan.settings.device.startswith("cuda") else "CPU"
        self._nodes: dict[ray.actor.ActorHandle, str] = {}
        self._free: asyncio.Queue[ray.actor.ActorHandle | Exception] = asyncio.Queue()
        self._num_calls = self._num_failed = 0
        self._filling: dict[Need, asyncio.Task] = {}
        self._shards: dict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._starting: set[asyncio.Task] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.run(self._grow())

    def close(self) -> None:
        """Whatever is under way is given up."""
        with suppress(TimeoutError):
            self.run(self._give_up()).result(GROW_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)

    @property
    def num_ready(self) -> int:
        """Extractors that have loaded the model and have nothing to do."""
        return self._free.qsize()

    def run(self, work: Coroutine) -> Future:
        """Of one of the coroutines below, for threads."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def fill(self, needs: list[Need]) -> None:
        """Wait until the needs stand in the store; latents first, so that no image is encoded twice."""
        for need in needs:
            if need not in self._filling:
                self._filling[need] = asyncio.ensure_future(self._fill(need))
        await asyncio.gather(*(self._filling[need] for need in needs))

    def forget(self, needs: list[Need]) -> None:
        """That they were filled: they are gone since."""
        for need in needs:
            self._filling.pop(need, None)

    async def looks(self, needs: list[Need]) -> dict[Need, np.ndarray]:
        """Each need of one block: which of its images leave-one-out ridge gets right. Looks begin at the timesteps that
        are filled while the others are extracted."""

        answers: dict[Need, np.ndarray] = {}

        async def at(need: Need) -> None:
            await self.fill([need])
            alone = [replace(need, blocks=(block,)) for block in need.blocks]
            answers.update(zip(alone, await asyncio.gather(*(self.call("look", one) for one in alone)), strict=True))

        await asyncio.gather(*map(at, needs))
        return answers

    async def label_free(
        self, first: list[Need], second: list[Need], noisier: list[Need], num_labels: int = 0
    ) -> list[dict[str, dict[str, float]]]:
        """Of each two noise draws, and the second of the next timestep, block -> score -> value."""

        async def at(*draws: Need) -> dict[str, dict[str, float]]:
            await self.fill(list(draws))
            return await self.call("label_free", *draws, num_labels)

        return await asyncio.gather(*map(at, first, second, noisier))

    async def call(self, method: str, *args: Any) -> Any:
        """What an extractor answers."""
        self._num_calls += 1
        try:
            work = await self._call(method, *args)
        finally:
            self._num_calls -= 1
        for message in work.warnings:
            log.warning(message)
        self.told(work)
        return work.result

    async def _call(self, method: str, *args: Any) -> Work:
        num_deaths = 0
        while True:
            extractor = await self._free.get()
            if isinstance(extractor, Exception):
                self._free.put_nowait(extractor)
                raise extractor
            if extractor not in self._nodes:
                continue
            try:
                return await extractor.work.remote(method, *args)
            except (RayActorError, ObjectLostError):
                num_deaths += 1
                if num_deaths == MAX_DEATHS:
                    raise
                self._drop(extractor)
                self._place()
            finally:
                if extractor in self._nodes:
                    self._free.put_nowait(extractor)

    async def _fill(self, need: Need) -> None:
        if self.plan.encoder:
            await self._fill_shards("encode", self.plan.latents(need.split, need.draw), need)
        await self._fill_shards("extract", self.plan.column(need.timestep, need.split, "", need.draw), need)

    async def _fill_shards(self, method: str, place: str, need: Need) -> None:
        async def fill(shard: int) -> None:
            async with self._shards[place, shard]:
                await self.call(method, need, shard)

        await asyncio.gather(*map(fill, range(num_shards(need))))

    async def _give_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for extractor in list(self._nodes):  # another sweep may want their devices
            self._drop(extractor)

    async def _grow(self) -> None:
        try:
            await self._follow()
        except Exception as error:  # nobody awaits this; the calls that wait shall hear of it
            self._free.put_nowait(error)

    async def _follow(self) -> None:
        began, warned, requested = time.monotonic(), False, 0
        while True:
            self._place()
            if (wanted := min(self._num_calls, MAX_REQUESTED)) != requested:
                requested = wanted
                request_resources(bundles=[{self._device: self._share}] * wanted)
            if not self._nodes and not warned and time.monotonic() > began + 6 * GROW_SECONDS:
                warned = True
                log.warning(f"the cluster has no {self._device} yet; waiting for one")
            await asyncio.sleep(GROW_SECONDS)

    @property
    def _share(self) -> float:
        return self.plan.gpus_per_extractor if self._device == "GPU" else 1

    def _place(self) -> None:
        """An extractor on every device that has none."""
        placed = Counter(self._nodes.values())
        for node in ray.nodes():
            if node["Alive"]:
                num_devices = int(node["Resources"].get(self._device, 0) / self._share)
                for _ in range(num_devices - placed[node["NodeID"]]):
                    starting = asyncio.ensure_future(self._start(node["NodeID"]))
                    self._starting.add(starting)
                    starting.add_done_callback(self._starting.discard)

    async def _start(self, node: str) -> None:
        options = {"num_gpus": self._share} if self._device == "GPU" else {}
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        extractor = (
            ray.remote(Extractor).options(num_cpus=0, scheduling_strategy=there, **options).remote(self._plan, 1)
        )
        self._nodes[extractor] = node
        try:
            await extractor.__ray_ready__.remote()
        except RayError as error:
            self._drop(extractor)
            self._num_failed += 1
            mistaken = isinstance(error, RayActorError) and error.actor_init_failed
            if mistaken or self._num_failed == MAX_DEATHS:  # what __init__ raised is in the text alone
                self._free.put_nowait(ValueError(str(error).strip().splitlines()[-1]))
        else:
            self._num_failed = 0
            self._free.put_nowait(extractor)

    def _drop(self, extractor: ray.actor.ActorHandle) -> None:
        if self._nodes.pop(extractor, None):
            ray.kill(extractor)
