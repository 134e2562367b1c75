"""The generation actor: leases plan indices, has their segments written, inserts the pairs, takes new weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.config import GenerationConfig
from actors.engine import SegmentEngine
from actors.plan import Plan
from actors.segment import context, splice
from actors.tokens import TokenTable
from buffer.client import ReplayBuffer
from buffer.record import Outcome, PreferencePair

INSERT_PAUSE_S = 0.005
"""How long a finished pair waits for others to be inserted with it."""


class GenerationActor:
    """A plain class; ``cluster`` makes an asynchronous Ray actor of it.

    Requests stream: as soon as one is finished the next index is leased, without batches.
    """

    def __init__(
        self, name: str, engine: dict[str, Any], config: GenerationConfig, work: tuple[Plan, TokenTable],
        buffer: ReplayBuffer,
    ) -> None:  # fmt: skip
        """``engine``: arguments of ``SegmentEngine`` beside ``config``."""
        self.name = name
        self._config, self._buffer = config, buffer
        self._plan, self._table = work
        self._eos = frozenset(engine["eos"])
        self._engine = SegmentEngine(config=config, **engine)
        self._leaving = False
        self._outbox: list[tuple[int, Outcome, PreferencePair | None]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._in_flight = 0
        self._generated_tokens = 0
        self._waited_s = 0.0
        self._calls = 0

    async def ready(self) -> str:
        """Answers when the engine is up."""
        return self.name

    async def run(self) -> None:
        """Work until the buffer is closed or ``drain`` was called, then finish what is in hand.

        Raises:
            Exception: whatever a request or an insert raised; the supervisor replaces the actor.
        """
        room = self._config.max_concurrent_requests
        running: set[asyncio.Task[None]] = set()
        lease: asyncio.Task[list[int] | None] | None = None
        asked = time.monotonic()
        while True:
            if lease is None and len(running) < room and not self._leaving:
                lease = asyncio.ensure_future(self._buffer.lease(self.name, room - len(running)))
                asked = time.monotonic()
            waiting = running | ({lease} if lease else set())
            if not waiting:
                break
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if lease in done:
                indices = lease.result()
                self._waited_s += 0.0 if running else time.monotonic() - asked
                lease = None
                if indices is None:
                    self._leaving = True
                running |= {asyncio.ensure_future(self._write(index)) for index in indices or ()}
            for task in done & running:
                running.discard(task)
                task.result()
            if self._leaving and lease is not None and not running:
                lease.cancel()
                break
        await self._flush()

    async def _write(self, index: int) -> None:
        item = self._plan.item(index)
        row = self._table[item.row]
        self._in_flight += 1
        try:
            written = await self._engine.write(
                context(row, item), item.end - item.start, item.sampling_seed, f"{self.name}-{index}"
            )
        finally:
            self._in_flight -= 1
        self._generated_tokens += len(written.tokens)
        outcome, pair = splice(
            row, item, written.tokens, self._eos, self._config.after_eos,
            actor=self.name, versions=written.versions, mean_logprob=written.mean_logprob,
        )  # fmt: skip
        self._outbox.append((index, outcome, pair))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.ensure_future(self._flush_soon())
        await self._flushing

    async def _flush_soon(self) -> None:
        await asyncio.sleep(INSERT_PAUSE_S)
        await self._flush()

    async def _flush(self) -> None:
        if not self._outbox:
            return
        batch, self._outbox = self._outbox, []
        outcomes = [(index, outcome) for index, outcome, _ in batch]
        await self._buffer.insert(self.name, outcomes, [pair for _, _, pair in batch if pair is not None])

    # ---- what vLLM's weight-sync clients call ---------------------------------------------------------------

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self._engine.init_transfer(request)

    async def shutdown_weight_transfer_engine(self) -> None:
        await self._engine.close_transfer()

    async def start_weight_update(self) -> None:
        await self._engine.start_update()
        # What the old weights finished reaches the buffer before the new ones are acknowledged: when the
        # learner counts on this actor's new version, nothing older is still on its way.
        await self._flush()
        if self._flushing:
            await self._flushing

    async def update_weights(self, request: Any) -> None:
        await self._engine.update(request)

    async def finish_weight_update(self, version: int) -> None:
        await self._engine.finish_update(version)

    # ---- what the supervisor calls --------------------------------------------------------------------------

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """float32 [tokens - 1] of each sequence: log-probabilities under the engine's weights."""
        self._calls += 1
        return await asyncio.gather(
            *[self._engine.score(tokens, f"{self.name}-score-{self._calls}-{i}") for i, tokens in enumerate(sequences)]
        )

    async def status(self) -> dict[str, float]:
        """Tokens generated, requests in flight, seconds without work."""
        return {"tokens": self._generated_tokens, "in_flight": self._in_flight, "waited_s": self._waited_s}

    async def drain(self) -> None:
        """Lease nothing more; ``run`` returns when everything in hand is inserted."""
        self._leaving = True

    async def sleep(self) -> None:
        await self._engine.sleep()

    async def wake(self) -> None:
        await self._engine.wake()
