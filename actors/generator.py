"""The generation actor: leases plan indices, completes their segments, splices, inserts; and takes new weights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actors.config import GenerationConfig
from actors.engine import RequestRejected, SegmentEngine
from actors.in_flight import InFlight
from actors.messages import ActorStatus, Completion, EngineSpec, Work
from actors.outbox import Outbox
from actors.plan import PlanItem
from actors.splice import context, splice
from actors.token_table import Row
from buffer.messages import Finished, Outcome
from contracts.pair import PreferencePair
from contracts.spans import span
from contracts.stacks import stacks

logger = logging.getLogger(__name__)


class WorkBuffer(Protocol):
    """What an actor asks of the replay buffer."""

    async def lease(self, actor: str, count: int) -> list[int] | None: ...

    async def insert(self, actor: str, finished: list[Finished]) -> None: ...


class GenerationActor:
    """A class of its own; ``cluster`` makes an asynchronous Ray actor of it.

    Requests stream: as soon as one is finished the next index is leased, without batches.
    """

    def __init__(self, name: str, engine: EngineSpec, config: GenerationConfig, work: Work, buffer: WorkBuffer) -> None:
        self.name = name
        self._config, self._buffer = config, buffer
        self._plan, self._table = work.plan, work.table
        self._ends = frozenset(engine.ends)
        self._engine = SegmentEngine(engine, config)
        self._running: asyncio.Task[None] | None = None
        self._calls = 0
        self._begin()

    def __repr__(self) -> str:
        """As Ray's dashboard and log prefixes name it."""
        return f"generation {self.name}"

    def _begin(self) -> None:
        self._leave = asyncio.Event()
        self._outbox = Outbox(self._insert)
        self._busy = InFlight()
        self._generated_tokens = 0

    async def ready(self) -> str:
        """Answers when the engine is up."""
        return self.name

    async def adopt(self, buffer: WorkBuffer) -> str:
        """Drop what is in hand and work for another buffer from the next ``run`` on, with the engine as it is: the one
        before has died with its attempt. New weights come before that."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        await self._engine.abort_all()
        self._buffer = buffer
        self._begin()
        return self.name

    async def run(self) -> None:
        """Work until the buffer is closed or ``drain`` was called, then finish what is in hand.

        Raises:
            Exception: the first that the engine or an insert raised; the supervisor replaces the actor.
        """
        self._running = asyncio.ensure_future(self._work_for_buffer())
        await self._running

    async def _work_for_buffer(self) -> None:
        room = self._config.max_concurrent_requests
        leased: asyncio.Queue[int | None] = asyncio.Queue(max(1, room // 4))
        try:
            async with asyncio.TaskGroup() as inserting:
                inserting.create_task(self._outbox.run())
                async with asyncio.TaskGroup() as generating:
                    generating.create_task(self._lease_into(leased))
                    for _ in range(room):
                        generating.create_task(self._work_from(leased))
                self._outbox.close()
        except BaseExceptionGroup as failures:
            raise _first(failures) from None

    async def _lease_into(self, leased: asyncio.Queue[int | None]) -> None:
        """Keep indices at hand, so that a free slot of the engine does not wait for the buffer's answer.

        A queue's worth is asked for when the last one has just gone into the queue: few calls, as each takes the
        engine's thread a millisecond of Python, and never more than two queues' worth that no slot is free for.
        """
        leaving = asyncio.ensure_future(self._leave.wait())
        while not self._leave.is_set():
            free = self._config.max_concurrent_requests - self._busy.count - leased.qsize()
            with span("plan"):
                lease = asyncio.ensure_future(self._buffer.lease(self.name, leased.maxsize + max(0, free)))
                await asyncio.wait((lease, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not lease.done():
                lease.cancel()  # what is granted all the same goes back to the pool when the actor is released
                break
            indices = lease.result()
            if indices is None:
                break
            for index in indices:
                await leased.put(index)
        leaving.cancel()
        await leased.put(None)

    async def _work_from(self, leased: asyncio.Queue[int | None]) -> None:
        while (index := await leased.get()) is not None:
            await self._work(index)
        await leased.put(None)  # the end is for everyone

    async def _work(self, index: int) -> None:
        """Complete the segment of one index, splice it, and put what came of it in the outbox."""
        item = self._plan.item(index)
        row = self._table[item.row]
        await self._engine.awake()
        with self._busy, span("write", index=str(index)):
            completion = await self._complete(row, item)
            self._outbox.put(Finished(index, *self._spliced(row, item, completion)))
        if not self._busy.count:
            self._outbox.hurry()

    async def _complete(self, row: Row, item: PlanItem) -> Completion | None:
        """None: the engine rejects this one request."""
        try:
            return await self._engine.complete(
                context(row, item), item.end - item.start, item.sampling_seed, f"{self.name}-{item.index}"
            )
        except RequestRejected as error:  # any other error is the engine's and ends the actor
            logger.warning("index %d, row %d: request rejected: %s", item.index, item.row, error)
            return None

    def _spliced(
        self, row: Row, item: PlanItem, completion: Completion | None
    ) -> tuple[Outcome, PreferencePair | None]:
        if completion is None:
            return Outcome.FAILED, None
        self._generated_tokens += len(completion.tokens)
        return splice(
            row,
            item,
            completion.tokens,
            self._ends,
            self._config.after_eos,
            actor=self.name,
            versions=completion.versions,
            mean_logprob=completion.mean_logprob,
        )

    async def _insert(self, finished: list[Finished]) -> None:
        await self._buffer.insert(self.name, finished)

    # ---- what the weight-sync client calls ------------------------------------------------------------------

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self._engine.init_transfer(request)

    async def start_weight_update(self) -> None:
        await self._engine.start_update()
        # What the old weights finished reaches the buffer before the new ones are acknowledged: when the
        # learner counts on this actor's new version, nothing older is still on its way.
        while self._busy.count > self._engine.unfinished:
            await asyncio.sleep(0.001)
        self._outbox.hurry()
        await self._outbox.emptied()

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

    async def score_last(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """float32 [sequences]: log-probability of each one's last token, its context read from the prefix cache."""
        self._calls += 1
        requests = [
            self._engine.score_last(tokens, f"{self.name}-score-{self._calls}-{i}")
            for i, tokens in enumerate(sequences)
        ]
        return np.array(await asyncio.gather(*requests), np.float32)

    async def status(self) -> ActorStatus:
        return ActorStatus(self._generated_tokens, self._busy.count, self._busy.idle_s)

    async def stacks(self) -> str:
        """What every thread of this actor is doing, for the log of a run in which it stands still."""
        return stacks()

    async def drain(self) -> None:
        """Lease nothing more; ``run`` returns when everything in hand is inserted."""
        self._leave.set()

    async def sleep(self) -> None:
        """Leave the GPU to the learner; the next publication ends it."""
        await self._engine.sleep()


def _first(failures: BaseExceptionGroup) -> BaseException:
    """The first error of nested groups."""
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
