"""The generation actor: leases plan indices, has their segments written, inserts the pairs, takes new weights."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.config import GenerationConfig
from actors.engine import SegmentEngine, Written
from actors.plan import Plan, PlanItem
from actors.splice import context, splice
from actors.token_table import Row, TokenTable
from buffer.client import ReplayBuffer
from buffer.messages import Finished, Outcome
from contracts.pair import PreferencePair

logger = logging.getLogger(__name__)

INSERT_PAUSE_S = 0.025
"""How long a finished pair waits for others to be inserted with it, while others are being written."""


class InFlight:
    """Counts requests, and the seconds in which there were none."""

    def __init__(self) -> None:
        self.count = 0
        self._idle_s = 0.0
        self._since: float | None = None

    @property
    def idle_s(self) -> float:
        running_idle = time.monotonic() - self._since if self._since is not None and not self.count else 0.0
        return self._idle_s + running_idle

    def __enter__(self) -> None:
        self._idle_s = self.idle_s
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        self._since = time.monotonic()


class GenerationActor:
    """A plain class; ``cluster`` makes an asynchronous Ray actor of it.

    Requests stream: as soon as one is finished the next index is leased, without batches.
    """

    def __init__(
        self,
        name: str,
        engine: dict[str, Any],
        config: GenerationConfig,
        work: tuple[Plan, TokenTable],
        buffer: ReplayBuffer,
    ) -> None:
        """``engine``: arguments of ``SegmentEngine`` beside ``config``."""
        self.name = name
        self._config, self._buffer = config, buffer
        self._plan, self._table = work
        self._eos = frozenset(engine["eos"])
        self._engine = SegmentEngine(config=config, **engine)
        self._leave = asyncio.Event()
        self._outbox: asyncio.Queue[Finished | None] = asyncio.Queue()
        """Finished indices on their way to the buffer; None ends it."""
        self._hurry = asyncio.Event()
        """Insert what is finished without waiting for more."""
        self._busy = InFlight()
        self._generated_tokens = 0
        self._calls = 0

    async def ready(self) -> str:
        """Answers when the engine is up."""
        return self.name

    async def run(self) -> None:
        """Work until the buffer is closed or ``drain`` was called, then finish what is in hand.

        Raises:
            Exception: the first that the engine or an insert raised; the supervisor replaces the actor.
        """
        room = self._config.max_concurrent_requests
        work: asyncio.Queue[int | None] = asyncio.Queue(max(1, room // 4))
        try:
            async with asyncio.TaskGroup() as inserting:
                inserting.create_task(self._insert_finished())
                async with asyncio.TaskGroup() as writing:
                    writing.create_task(self._lease_into(work))
                    for _ in range(room):
                        writing.create_task(self._write_from(work))
                self._outbox.put_nowait(None)
        except BaseExceptionGroup as failures:
            raise _first(failures) from None

    async def _lease_into(self, work: asyncio.Queue[int | None]) -> None:
        """Keep indices at hand, so that a free slot of the engine does not wait for the buffer's answer.

        A queue's worth is asked for when the last one has just gone into the queue: few calls, as each takes the
        engine's thread a millisecond of Python, and never more than two queues' worth that no slot is free for.
        """
        leaving = asyncio.ensure_future(self._leave.wait())
        while not self._leave.is_set():
            free = self._config.max_concurrent_requests - self._busy.count - work.qsize()
            lease = asyncio.ensure_future(self._buffer.lease(self.name, work.maxsize + max(0, free)))
            await asyncio.wait((lease, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not lease.done():
                lease.cancel()  # what is granted all the same goes back to the pool when the actor is released
                break
            indices = lease.result()
            if indices is None:
                break
            for index in indices:
                await work.put(index)
        leaving.cancel()
        await work.put(None)

    async def _write_from(self, work: asyncio.Queue[int | None]) -> None:
        while (index := await work.get()) is not None:
            await self._write(index)
        await work.put(None)  # the end is for everyone

    async def _write(self, index: int) -> None:
        item = self._plan.item(index)
        row = self._table[item.row]
        with self._busy:
            try:
                written = await self._engine.write(
                    context(row, item), item.end - item.start, item.sampling_seed, f"{self.name}-{index}"
                )
            except ValueError as error:
                # vLLM's validation refused this one request; any other error is the engine's and ends the actor.
                logger.warning("index %d, row %d: request refused: %s", index, item.row, error)
                written = None
            self._outbox.put_nowait(Finished(index, *self._spliced(row, item, written)))
        if not self._busy.count:
            self._hurry.set()

    def _spliced(self, row: Row, item: PlanItem, written: Written | None) -> tuple[Outcome, PreferencePair | None]:
        if written is None:
            return Outcome.FAILED, None
        self._generated_tokens += len(written.tokens)
        return splice(
            row,
            item,
            written.tokens,
            self._eos,
            self._config.after_eos,
            actor=self.name,
            versions=written.versions,
            mean_logprob=written.mean_logprob,
        )

    async def _insert_finished(self) -> None:
        """Insert what is finished, several pairs at a time."""
        more = True
        while more:
            batch = [await self._outbox.get()]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), INSERT_PAUSE_S)
            self._hurry.clear()
            while not self._outbox.empty():
                batch.append(self._outbox.get_nowait())
            more = None not in batch
            finished = [entry for entry in batch if entry is not None]
            if finished:
                await self._buffer.insert(self.name, finished)
            for _ in batch:
                self._outbox.task_done()

    # ---- what the weight-sync client calls ------------------------------------------------------------------

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self._engine.init_transfer(request)

    async def shutdown_weight_transfer_engine(self) -> None:
        await self._engine.close_transfer()

    async def start_weight_update(self) -> None:
        await self._engine.start_update()
        # What the old weights finished reaches the buffer before the new ones are acknowledged: when the
        # learner counts on this actor's new version, nothing older is still on its way.
        while self._busy.count > self._engine.unfinished:
            await asyncio.sleep(0.001)
        self._hurry.set()
        await self._outbox.join()

    async def update_weights(self, request: Any) -> None:
        await self._engine.update(request)

    async def finish_weight_update(self, version: int, digests: dict[str, int]) -> None:
        await self._engine.finish_update(version, digests)

    async def replace_weights(self, request: Any, version: int) -> None:
        """The three calls of an update in one, of weights whose bytes have checksums."""
        await self.start_weight_update()
        await self.update_weights(request)
        await self.finish_weight_update(version, {})

    # ---- what the supervisor calls --------------------------------------------------------------------------

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """float32 [tokens - 1] of each sequence: log-probabilities under the engine's weights."""
        self._calls += 1
        return await asyncio.gather(
            *[self._engine.score(tokens, f"{self.name}-score-{self._calls}-{i}") for i, tokens in enumerate(sequences)]
        )

    async def status(self) -> dict[str, float]:
        """Tokens generated, requests in flight, seconds without any since the first."""
        return {"tokens": self._generated_tokens, "in_flight": self._busy.count, "idle_s": self._busy.idle_s}

    async def drain(self) -> None:
        """Lease nothing more; ``run`` returns when everything in hand is inserted."""
        self._leave.set()

    async def sleep(self) -> None:
        await self._engine.sleep()

    async def wake(self) -> None:
        await self._engine.wake()


def _first(failures: BaseExceptionGroup) -> BaseException:
    """The first error of nested groups."""
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
