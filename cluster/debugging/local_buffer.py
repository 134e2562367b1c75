"""The replay buffer in this process: the same coordinator and one shard, called without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from buffer.client import Draw, ReplayBuffer, as_draw
from buffer.coordinator import Coordinator
from buffer.messages import Finished, ItemScores
from buffer.shard import Shard
from cluster.config.run_config import RunConfig
from contracts.pair import ReferenceScore


@dataclass(frozen=True)
class LocalHandle:
    """An object whose methods are called as those of Ray's actor handle are."""

    target: Any

    def __getattr__(self, method: str) -> LocalMethod:
        return LocalMethod(getattr(self.target, method))


@dataclass(frozen=True)
class LocalMethod:
    """``remote`` returns what the method returns: of an asynchronous one, what can be awaited."""

    call: Callable[..., Any]

    def remote(self, *arguments: object) -> Any:
        return self.call(*arguments)


Written = Callable[[Sequence[Finished]], None]
"""Called with what an actor has finished, in the actor's own frames."""


class LocalBuffer:
    """What an actor leases from and inserts into, and what the loop draws from. In lockstep."""

    def __init__(self, config: RunConfig, written: Written) -> None:
        shard = LocalHandle(Shard())
        self._coordinator = Coordinator(
            config.buffer,
            seed=config.seed,
            batch_size=config.learner.batch_size,
            inserts_per_step=config.inserts_per_step,
            ordered=True,
            ahead=0,
            behind=0,
            shards=[shard],
        )
        self._client = ReplayBuffer(LocalHandle(self._coordinator), (shard,))
        self._written = written

    async def lease(self, actor: str, count: int) -> list[int] | None:
        """As of ``ReplayBuffer``."""
        return await self._client.lease(actor, count)

    async def insert(self, actor: str, finished: list[Finished]) -> None:
        """As of ``ReplayBuffer``."""
        self._written(finished)
        await self._client.insert(actor, finished)

    async def draw(self, working: asyncio.Task[None]) -> Draw:
        """One batch; waits until the actor has made it.

        Raises:
            Exception: what the actor, whose work is ``working``, has failed with.
        """
        drawing = asyncio.ensure_future(self._coordinator.draw())
        await asyncio.wait((drawing, working), return_when=asyncio.FIRST_COMPLETED)
        if not drawing.done():
            drawing.cancel()
            working.result()
        answer = await drawing
        assert answer is not None, "nobody withdraws it"
        return as_draw(answer, answer.payloads)

    async def annotate(self, keys: np.ndarray, scores: Sequence[ReferenceScore | None]) -> None:
        """Keep fresh reference scores with their pairs, int64 [pairs]; None: the cached one served."""
        fresh = {key: score for key, score in zip(keys.tolist(), scores, strict=True) if score is not None}
        await self._coordinator.annotate(ItemScores(fresh))

    async def advance(self, step: int) -> None:
        """The learner has done ``step`` steps, and the actor generates with their weights."""
        await self._coordinator.advance(step, step)

    async def close(self) -> None:
        """The actor comes to its end."""
        await self._coordinator.close()
