"""The features that a sweep asks for: which shards are filled, by whom and in which order."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from storage.feature_store import FeatureStore
from sweeps.cluster.pool import Pool
from sweeps.probing.extractor import (
    Extracted,
    Stored,
    columns_of,
    encode_shard,
    extract_shard,
    folder_of,
    list_shards,
    score,
    screen,
)
from sweeps.probing.screening import Scored
from sweeps.probing.source import FeatureSource, Need


class Filling:
    """Fills a source's store through a pool, by coroutines that the pool runs. A need is filled once; no two workers
    are ever asked for one shard at a time.

    on_extracted: hears of every shard that is filled. on_step: hears of every site that is screened or scored.
    """

    def __init__(
        self,
        source: FeatureSource,
        pool: Pool,
        on_extracted: Callable[[Extracted], None] = lambda _: None,
        on_step: Callable[[], None] = lambda: None,
    ):
        self.source, self.pool, self.on_extracted, self.on_step = source, pool, on_extracted, on_step
        self.store = FeatureStore(source.store)
        self.screening_seconds = 0.0
        """Summed over workers."""
        self._filled: dict[Need, asyncio.Task] = {}
        self._shards: dict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def fill(self, needs: Sequence[Need], lost: bool = False) -> None:
        """Ends when the needs stand in the store. lost: they were filled before, and are gone since."""
        if lost:
            for need in needs:
                self._filled.pop(need, None)
        for need in needs:
            if need not in self._filled:
                self._filled[need] = asyncio.ensure_future(self._fill(need))
        await asyncio.gather(*(self._filled[need] for need in needs))

    async def encode(self, needs: Sequence[Need]) -> None:
        """Ends when the latents of the needs' images stand in the store."""

        async def encode_one(need: Need, shard: int, stored: Stored) -> None:
            await self.pool.call(encode_shard, self.source, need, shard, stored)
            self.on_step()

        async def encode_all(need: Need) -> None:
            shards = enumerate(await self._listed([self.source.latents(need.split, need.view)], need))
            await asyncio.gather(*(encode_one(need, *each) for each in shards))

        await asyncio.gather(*map(encode_all, needs))

    async def screen(self, needs: Sequence[Need], poolings: Mapping[str, tuple[int, ...]]) -> dict[Need, np.ndarray]:
        """For each need of one block: which of its images leave-one-out ridge classifies correctly, bool [num_images].

        Sites are screened at the timesteps that are filled while others are extracted. poolings: by block.
        """
        answers: dict[Need, np.ndarray] = {}

        async def at_site(need: Need) -> np.ndarray:
            correct, seconds = await self.pool.call(screen, self.source, need, poolings[need.blocks[0]])
            self.screening_seconds += seconds
            self.on_step()
            return correct

        async def at_timestep(need: Need) -> None:
            await self.fill([need])
            alone = [replace(need, blocks=(block,)) for block in need.blocks]
            answers.update(zip(alone, await asyncio.gather(*map(at_site, alone)), strict=True))

        await asyncio.gather(*map(at_timestep, needs))
        return answers

    async def score(
        self, needs: Sequence[Mapping[str, Need]], names: tuple[str, ...], num_labels: int, num_resamples: int
    ) -> list[dict[str, Scored]]:
        """The label-free scores of every block at each timestep. needs: at each, as extractor.score has them; those of
        turned images are filled before."""

        async def at_timestep(draws: Mapping[str, Need]) -> dict[str, Scored]:
            await self.fill([need for field, need in draws.items() if field != "turned"])
            scores = await self.pool.call(score, self.source, draws, names, num_labels, num_resamples)
            self.on_step()
            return scores

        return list(await asyncio.gather(*map(at_timestep, needs)))

    async def _fill(self, need: Need) -> None:
        """Latents first, so that no image is encoded twice."""
        if self.source.encoder:
            latents = self.source.latents(need.split, need.view)
            await self._fill_shards(encode_shard, latents, [latents], need)
        await self._fill_shards(extract_shard, folder_of(self.source, need), columns_of(self.source, need), need)

    async def _fill_shards(self, fill: Callable, folder: str, columns: list[str], need: Need) -> None:
        async def fill_one(shard: int, stored: Stored) -> None:
            async with self._shards[folder, shard]:
                extracted = await self.pool.call(fill, self.source, need, shard, stored)
            if extracted is not None:
                self.on_extracted(extracted)

        shards = enumerate(await self._listed(columns, need))
        await asyncio.gather(*(fill_one(*each) for each in shards))

    async def _listed(self, columns: list[str], need: Need) -> list[Stored]:
        """Done here, once a column, so that no worker has to ask for each of its shards."""
        return await asyncio.to_thread(list_shards, self.store, columns, need.num_images)
