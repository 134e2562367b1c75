"""The coordinator of the buffer: the one place that orders inserts, draws and leases. Payloads are in shards."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buffer.config import BufferConfig
from buffer.index import ReplayIndex
from buffer.leases import LeaseLedger
from buffer.messages import (
    BufferStats,
    CoordinatorState,
    DrawAnswer,
    Drawing,
    HeldRow,
    InsertRequest,
    ItemScores,
    LeaseAnswer,
    Outcome,
    SlotPayloads,
    SlotScores,
)
from buffer.rate_limiter import RateLimiter, warmup_offset
from buffer.slot_layout import SlotLayout
from buffer.snapshot import shard_file
from contracts.pair import ReferenceScore
from contracts.stacks import stacks

CLOSED = "the buffer is closed"


@dataclass(frozen=True)
class WaitingLease:
    """A lease that waits for admission."""

    actor: str
    count: int
    future: asyncio.Future[LeaseAnswer]
    since: float
    """Seconds of the monotonic clock."""


class Coordinator:
    """Keys, weights, leases and the limiter; ``ReplayBuffer.start`` makes an asynchronous actor of this plain class.

    State changes between two awaits and calls to shards are sent on in the order of the changes, so there is no lock.
    Waiting callers hold a future that a change fulfils: nobody polls, and only who gets something is woken.
    """

    def __init__(
        self,
        config: BufferConfig,
        *,
        seed: int,
        batch_size: int,
        inserts_per_step: int,
        ordered: bool,
        ahead: int,
        behind: int,
        shards: Sequence[Any],
    ) -> None:
        """Arguments as of ``ReplayBuffer.start``; ``shards``: their actor handles."""
        self._batch, self._ordered, self._shards = batch_size, ordered, shards
        self._index = ReplayIndex(config, seed)
        self._layout = SlotLayout.of(config.capacity, len(shards))
        self._ledger = LeaseLedger()
        needed = max(batch_size, config.min_size)
        self._limiter = RateLimiter(inserts_per_step, needed, ahead, behind, warmup_offset(needed, inserts_per_step))
        self._held: dict[int, HeldRow] = {}
        """By index, what is accounted for and not visible yet."""
        self._visible = 0
        """Indices below this have been made visible (``ordered``)."""
        self._counts: Counter[Outcome] = Counter()
        self._drawing = Drawing()
        self._duplicates = self._generated_tokens = 0
        self._blocked_lease_s = self._blocked_draw_s = 0.0
        self._leases: deque[WaitingLease] = deque()
        self._draws: deque[asyncio.Future[DrawAnswer | None]] = deque()
        self._gone: set[str] = set()
        self._closed = False

    def __repr__(self) -> str:
        """As Ray's dashboard and log prefixes name it."""
        return f"replay buffer of {self._index.capacity} pairs, coordinator"

    async def lease(self, actor: str, count: int) -> LeaseAnswer:
        if self._closed or actor in self._gone:
            return LeaseAnswer(None)
        waiting = WaitingLease(actor, count, asyncio.get_running_loop().create_future(), time.monotonic())
        self._leases.append(waiting)
        self._grant()
        return await waiting.future

    async def insert(self, request: InsertRequest) -> None:
        self._generated_tokens += request.generated_tokens
        for row in request.rows:
            if self._ledger.account(request.actor, row.index):
                self._held[row.index] = HeldRow(row, self._limiter.steps)
            else:
                self._duplicates += 1
        self._make_visible()
        self._settle()

    def _make_visible(self) -> None:
        """Enter what may be seen: everything, or in lockstep the unbroken run of indices."""
        ready = range(self._visible, self._ledger.mark) if self._ordered else list(self._held)
        self._visible = self._ledger.mark
        fresh: dict[int, dict[int, bytes]] = {}  # payloads by shard and slot
        for index in ready:
            held = self._held.pop(index, None)
            if held is None:
                continue  # seen before the snapshot of a run that was not ordered
            row = held.row
            self._counts[row.outcome] += 1
            self._limiter.account()
            if row.payload is not None:
                slot = self._index.insert(row.version, held.step - row.version) % self._index.capacity
                fresh.setdefault(self._layout.shard(slot), {})[slot] = row.payload
        for shard, payloads in fresh.items():
            self._shards[shard].insert.remote(SlotPayloads(payloads))

    def _settle(self) -> None:
        """Give waiting callers what a change has made possible."""
        while self._draws and self._limiter.may_draw(self._index.size):
            future = self._draws.popleft()
            if not future.done():
                future.set_result(self._take())
        self._limiter.credit(self._index.size)
        self._grant()

    def _grant(self) -> None:
        """Share out what may be leased between the waiting leases, first come first served.

        Equal shares: one engine would take a whole step's work while the others stand still.
        """
        admitted = self._limiter.admitted()
        while self._leases and (free := self._ledger.free(admitted)):
            share = -(-free // len(self._leases))
            waiting = self._leases.popleft()
            if not waiting.future.done():
                indices = self._ledger.lease(waiting.actor, min(waiting.count, share), admitted)
                waiting.future.set_result(LeaseAnswer(indices))
                self._blocked_lease_s += time.monotonic() - waiting.since

    async def draw(self) -> DrawAnswer | None:
        """Waits until the limiter allows a draw; None: it was withdrawn meanwhile, and nothing has changed.

        Raises:
            RuntimeError: the buffer is closed.
        """
        future: asyncio.Future[DrawAnswer | None] = asyncio.get_running_loop().create_future()
        started = time.monotonic()
        self._draws.append(future)
        self._settle()
        if self._closed and not future.done():
            self._draws.remove(future)
            raise RuntimeError(CLOSED)
        answer = await future
        self._blocked_draw_s += time.monotonic() - started
        return answer

    async def withdraw_draws(self) -> None:
        """Answer the draws that wait with None."""
        for future in self._draws:
            if not future.done():
                future.set_result(None)
        self._draws.clear()

    def _take(self) -> DrawAnswer:
        drawn = self._index.draw(self._batch)
        self._drawing = self._drawing.next(self._counts.total(), self._counts[Outcome.IDENTICAL])
        self._limiter.drew()
        wanted: dict[int, list[int]] = {}  # slots by shard
        for slot in drawn.slots.tolist():
            wanted.setdefault(self._layout.shard(slot), []).append(slot)
        payloads = [self._shards[shard].get.remote(slots) for shard, slots in wanted.items()]
        return DrawAnswer(drawn, payloads, self._stats())

    async def annotate(self, request: ItemScores) -> None:
        scored: dict[int, dict[int, ReferenceScore]] = {}  # by shard and slot
        for key, score in request.scores.items():
            if self._index.holds(key):
                slot = key % self._index.capacity
                scored.setdefault(self._layout.shard(slot), {})[slot] = score
        for shard, scores in scored.items():
            self._shards[shard].annotate.remote(SlotScores(scores))

    async def advance(self, step: int, published: int) -> None:
        self._limiter.advance(step, published)
        self._index.expire(step)
        self._settle()

    async def release(self, actor: str) -> list[int]:
        # A lease that still waits for a lost actor would be granted to nobody.
        self._gone.add(actor)
        for waiting in [w for w in self._leases if w.actor == actor]:
            self._leases.remove(waiting)
            waiting.future.set_result(LeaseAnswer(None))
        indices = self._ledger.release(actor)
        self._settle()
        return indices

    async def stacks(self) -> str:
        """What every thread of this process is doing."""
        return stacks()

    async def stats(self) -> BufferStats:
        return self._stats()

    def _stats(self) -> BufferStats:
        return BufferStats(
            size=self._index.size,
            capacity=self._index.capacity,
            mark=self._ledger.mark,
            leased=self._ledger.leased,
            inserted=self._counts[Outcome.INSERTED],
            identical=self._counts[Outcome.IDENTICAL],
            discarded=self._counts[Outcome.DISCARDED],
            failed=self._counts[Outcome.FAILED],
            duplicates=self._duplicates,
            generated_tokens=self._generated_tokens,
            identical_fraction=float("nan") if (share := self._drawing.identical_fraction) is None else share,
            draws=self._index.draws,
            evicted=self._index.evicted,
            blocked_lease_s=self._blocked_lease_s,
            blocked_draw_s=self._blocked_draw_s,
        )

    async def snapshot(self, folder: Path) -> CoordinatorState:
        """Have every shard begin to write its file to ``folder``; returns the coordinator's own state at the same
        moment."""
        state = CoordinatorState(
            index=self._index.state(),
            ledger=self._ledger.state(),
            limiter=self._limiter.state(),
            held=list(self._held.values()),
            visible=self._visible,
            counts=dict(self._counts),
            drawing=self._drawing,
            duplicates=self._duplicates,
            generated_tokens=self._generated_tokens,
            layout=self._layout,
        )
        # Sent before anything else can change: behind all earlier inserts, ahead of all later ones.
        await asyncio.gather(
            *[shard.save.remote(shard_file(folder, number)) for number, shard in enumerate(self._shards)]
        )
        return state

    async def restore(self, state: CoordinatorState, folder: Path) -> None:
        """Be what the snapshot was taken from, over as many shards as there are now."""
        files = [shard_file(folder, number) for number in range(state.layout.shards)]
        same = state.layout == self._layout
        await asyncio.gather(
            *[
                shard.load.remote([files[number]] if same else files, number, self._layout)
                for number, shard in enumerate(self._shards)
            ]
        )
        self._index.restore(state.index)
        self._ledger = LeaseLedger.restored(state.ledger)
        self._limiter.resume(state.limiter)
        self._held = {held.row.index: held for held in state.held}
        self._visible, self._counts = state.visible, Counter(state.counts)
        self._drawing = state.drawing
        self._duplicates, self._generated_tokens = state.duplicates, state.generated_tokens
        self._settle()

    async def close(self) -> None:
        self._closed = True
        for waiting in self._leases:
            if not waiting.future.done():
                waiting.future.set_result(LeaseAnswer(None))
        for future in self._draws:
            if not future.done():
                future.set_exception(RuntimeError(CLOSED))
        self._leases.clear()
        self._draws.clear()
