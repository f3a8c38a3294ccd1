"""One worker on every device of the cluster, and functions for them to call."""

import asyncio
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from logging.handlers import BufferingHandler
from typing import Any, TypeVar

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ObjectLostError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MAX_DEATHS = 20
"""How often a process or machine may die on one piece of work before that is thought to kill it."""
GROW_SECONDS = 5
"""Between two looks at what the cluster has."""
MAX_REQUESTED = 1000
"""How many devices the autoscaler is asked for at most."""

T = TypeVar("T")
log = logging.getLogger("sweeps")


Work = tuple[Any, tuple[float, float], list[str]]
"""What a call came to in a worker: its result, when it began and ended, in seconds since the epoch, and what the store
warned of: a worker's own lines reach nobody."""


class Warnings(BufferingHandler):
    """What the store warns of in this process, kept until somebody asks."""

    def __init__(self) -> None:
        super().__init__(capacity=10**6)
        for name in ("storage", "sweeps"):
            logging.getLogger(name).addHandler(self)

    def drain(self) -> list[str]:
        messages = [record.getMessage() for record in self.buffer]
        self.flush()
        return messages


class Worker:
    """Calls functions on its device. What they want to keep between calls, such as a loaded network, they cache."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.warned = Warnings()

    def call(self, function: Callable, *args: Any) -> Work:
        started = time.time()
        result = function(*args)
        return result, (started, time.time()), self.warned.drain()


class Pool:
    """As many workers as the cluster has devices at the time: GPUs, or shares of them, or CPUs, of which they hold
    none, because trials run there as well.

    A call goes to the first worker that is free. One whose process or machine dies is forgotten: another gets its call,
    and its device a new one. So machines may come and go.

    device: as PyTorch names it. gpu_share: how much of a GPU is for one worker. left: the part of that which it leaves
    to others.
    """

    def __init__(self, device: str = "cpu", gpu_share: float = 1.0, left: float = 0):
        self.busy: list[tuple[float, float]] = []
        """Wall-clock intervals in which a worker worked, in seconds since the epoch."""
        self._device = "GPU" if device.startswith("cuda") else "CPU"
        self._share = gpu_share if self._device == "GPU" else 1.0
        self._held = self._share * (1 - left)
        self._nodes: dict[ray.actor.ActorHandle, str] = {}
        self._free: asyncio.Queue[ray.actor.ActorHandle | Exception] = asyncio.Queue()
        self._num_calls = self._num_failed = 0
        self._warned: set[str] = set()
        self._starting: set[asyncio.Task] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.run(self._grow())

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        """Whatever is under way is given up."""
        with suppress(TimeoutError):
            self.run(self._give_up()).result(GROW_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)

    @property
    def num_ready(self) -> int:
        """Workers that have started and have nothing to do."""
        return self._free.qsize()

    def submit(self, function: Callable[..., T], *args: Any) -> "Future[T]":
        """What function(*args) returns, called in a worker."""
        return self.run(self.call(function, *args))

    def run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine beside the calls, which may await call()."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Do what submit does, for coroutines that run() runs."""
        self._num_calls += 1
        try:
            result, worked, warnings = await self._call(function, *args)
        finally:
            self._num_calls -= 1
        for message in warnings:
            if message not in self._warned:  # by another worker, of what they share
                self._warned.add(message)
                log.warning(message)
        self.busy.append(worked)
        return result

    async def _call(self, function: Callable, *args: Any) -> Work:
        num_deaths = 0
        while True:
            worker = await self._free.get()
            if isinstance(worker, Exception):
                self._free.put_nowait(worker)
                raise worker
            if worker not in self._nodes:
                continue
            try:
                return await worker.call.remote(function, *args)
            except (RayActorError, ObjectLostError):
                num_deaths += 1
                if num_deaths == MAX_DEATHS:
                    raise
                self._drop(worker)
                self._place()
            finally:
                if worker in self._nodes:
                    self._free.put_nowait(worker)

    async def _give_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for worker in list(self._nodes):  # another sweep may want their devices
            self._drop(worker)

    async def _grow(self) -> None:
        began, warned, requested = time.monotonic(), False, 0
        try:
            while True:
                self._place()
                if (wanted := min(self._num_calls, MAX_REQUESTED)) != requested:
                    requested = wanted
                    whole = math.ceil(self._share)  # an older Ray takes no parts of devices here
                    request_resources(bundles=[{self._device: whole}] * math.ceil(wanted * self._share / whole))
                if not self._nodes and not warned and time.monotonic() > began + 6 * GROW_SECONDS:
                    warned = True
                    log.warning(f"the cluster has no {self._device} yet; waiting for one")
                await asyncio.sleep(GROW_SECONDS)
        except Exception as error:  # nobody awaits this; the calls that wait shall hear of it
            self._free.put_nowait(error)

    def _place(self) -> None:
        """Start a worker on every device that has none. Ray's own restarts would not do: they look for another node,
        and the worker is bound to this one's device."""
        placed = Counter(self._nodes.values())
        for node in ray.nodes():
            if node["Alive"]:
                num_devices = int(node["Resources"].get(self._device, 0) / self._share)
                for _ in range(num_devices - placed[node["NodeID"]]):
                    starting = asyncio.ensure_future(self._start(node["NodeID"]))
                    self._starting.add(starting)
                    starting.add_done_callback(self._starting.discard)

    async def _start(self, node: str) -> None:
        options = {"num_gpus": self._held} if self._device == "GPU" else {}
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        worker = ray.remote(Worker).options(num_cpus=0, scheduling_strategy=there, **options).remote()
        self._nodes[worker] = node
        try:
            await worker.__ray_ready__.remote()
        except RayError as error:
            self._drop(worker)
            self._num_failed += 1
            mistaken = isinstance(error, RayActorError) and error.actor_init_failed
            if mistaken or self._num_failed == MAX_DEATHS:  # what __init__ raised is in the text alone
                self._free.put_nowait(ValueError(str(error).strip().splitlines()[-1]))
        else:
            self._num_failed = 0
            self._free.put_nowait(worker)

    def _drop(self, worker: ray.actor.ActorHandle) -> None:
        if self._nodes.pop(worker, None):
            ray.kill(worker)
