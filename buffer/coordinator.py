"""The front of the buffer: the one place that orders inserts, draws and leases. Payloads are in shards."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from buffer.config import BufferConfig
from buffer.index import Drawn, ReplayIndex
from buffer.leases import Ledger
from buffer.rate_limiter import RateLimiter
from buffer.shard import Layout
from contracts.pair import Outcome, ReferenceScore


@dataclass(frozen=True)
class BufferStats:
    """Counters since the start of the run."""

    size: int = 0
    capacity: int = 0
    mark: int = 0
    leased: int = 0
    inserted: int = 0
    identical: int = 0
    rejected: int = 0
    failed: int = 0
    duplicates: int = 0
    generated_tokens: int = 0
    draws: int = 0
    evicted: int = 0
    blocked_lease_s: float = 0.0
    """Seconds that actors waited for admission, added up over the waiting calls."""
    blocked_draw_s: float = 0.0
    """Seconds that draws waited for pairs."""


CLOSED = "the buffer is closed"
Answer = tuple[Drawn, list, BufferStats]
"""A draw; (members of the batch, reference to a list of their payloads) by shard; counters."""


@dataclass(frozen=True)
class Waiting:
    """A lease that waits for admission."""

    actor: str
    count: int
    future: asyncio.Future[list[int] | None]
    since: float


class Front:
    """Tickets, weights, leases and the limiter; ``ReplayBuffer.start`` makes an asynchronous actor of this plain class.

    State changes between two awaits and calls to shards are sent on in the order of the changes, so there is no lock.
    Waiting callers hold a future that a change fulfils: nobody polls, and only who gets something is woken.
    """

    def __init__(
        self,
        config: BufferConfig,
        seed: int,
        batch_size: int,
        inserts_per_step: int,
        ordered: bool,
        ahead: int,
        behind: int,
        shards: list,
    ) -> None:
        self._batch, self._ordered, self._shards = batch_size, ordered, shards
        self._index = ReplayIndex(config, seed)
        self._layout = Layout.of(config.capacity, len(shards))
        self._ledger = Ledger()
        needed = max(batch_size, config.min_size)
        # What has to be there before the first draw beyond the first step's own inserts.
        warm = max(0, -(-(needed - inserts_per_step) // inserts_per_step)) * inserts_per_step
        self._limiter = RateLimiter(inserts_per_step, needed, ahead, behind, warm)
        self._held: dict[int, tuple[Outcome, bytes | None, int, int]] = {}
        """By index, what is accounted for and not visible yet: outcome, payload, version, steps at its arrival."""
        self._visible = 0
        """Indices below this have been made visible (``ordered``)."""
        self._counts: Counter[str] = Counter()
        self._blocked_lease_s = self._blocked_draw_s = 0.0
        self._leases: deque[Waiting] = deque()
        self._draws: deque[asyncio.Future[Answer]] = deque()
        self._gone: set[str] = set()
        self._closed = False

    async def lease(self, actor: str, count: int) -> list[int] | None:
        if self._closed or actor in self._gone:
            return None
        waiting = Waiting(actor, count, asyncio.get_running_loop().create_future(), time.monotonic())
        self._leases.append(waiting)
        self._grant()
        return await waiting.future

    async def insert(self, actor: str, outcomes: list, tokens: int) -> None:
        """``outcomes``: (index, Outcome, payload or None, version)."""
        self._counts["generated_tokens"] += tokens
        for index, outcome, pair, version in outcomes:
            if not self._ledger.account(index):
                self._counts["duplicates"] += 1
                continue
            self._held[index] = (Outcome(outcome), pair, version, self._limiter.steps)
        self._make_visible()
        self._settle()

    def _make_visible(self) -> None:
        """Enter what may be seen: everything, or in lockstep the unbroken run of indices."""
        ready = range(self._visible, self._ledger.mark) if self._ordered else list(self._held)
        self._visible = self._ledger.mark
        slots: list[int] = []
        pairs: list[bytes] = []
        for index in ready:
            held = self._held.pop(index, None)
            if held is None:
                continue  # seen before the snapshot of a run that was not ordered
            outcome, pair, version, step = held
            self._counts[outcome.name.lower()] += 1
            self._limiter.accounted += 1
            if outcome is Outcome.INSERTED and pair is not None:
                slots.append(self._index.insert(version, step - version) % self._index.capacity)
                pairs.append(pair)
        for shard, members in self._by_shard(slots).items():
            self._shards[shard].insert.remote([slots[i] for i in members], [pairs[i] for i in members])

    def _settle(self) -> None:
        """Give waiting callers what a change has made possible."""
        while self._draws and self._limiter.may_draw(self._index.size):
            future = self._draws.popleft()
            if not future.done():
                future.set_result(self._take())
        self._limiter.feed(self._index.size)
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
                waiting.future.set_result(self._ledger.lease(waiting.actor, min(waiting.count, share), admitted))
                self._blocked_lease_s += time.monotonic() - waiting.since

    async def draw(self) -> Answer:
        """Waits until the limiter allows a draw.

        Raises:
            RuntimeError: the buffer is closed.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        started = time.monotonic()
        self._draws.append(future)
        self._settle()
        if self._closed and not future.done():
            self._draws.remove(future)
            raise RuntimeError(CLOSED)
        answer = await future
        self._blocked_draw_s += time.monotonic() - started
        return answer

    def _take(self) -> Answer:
        drawn = self._index.draw(self._batch)
        self._limiter.draws += 1
        slots = drawn.slots.tolist()
        payloads = [
            (members, self._shards[shard].get.remote([slots[i] for i in members]))
            for shard, members in self._by_shard(slots).items()
        ]
        return drawn, payloads, self._stats()

    async def annotate(self, tickets: np.ndarray, scores: list[ReferenceScore]) -> None:
        kept = [i for i, ticket in enumerate(tickets.tolist()) if self._index.holds(ticket)]
        slots = [int(tickets[i]) % self._index.capacity for i in kept]
        for shard, members in self._by_shard(slots).items():
            self._shards[shard].annotate.remote([slots[m] for m in members], [scores[kept[m]] for m in members])

    async def advance(self, step: int, published: int) -> None:
        self._limiter.steps, self._limiter.published = step, published
        self._index.expire(step)
        self._settle()

    async def release(self, actor: str) -> list[int]:
        # A lease that still waits for a lost actor would be granted to nobody.
        self._gone.add(actor)
        for waiting in [w for w in self._leases if w.actor == actor]:
            self._leases.remove(waiting)
            waiting.future.set_result(None)
        indices = self._ledger.release(actor)
        self._settle()
        return indices

    async def stats(self) -> BufferStats:
        return self._stats()

    def _stats(self) -> BufferStats:
        counted = {
            n: self._counts[n]
            for n in ("inserted", "identical", "rejected", "failed", "duplicates", "generated_tokens")
        }
        return BufferStats(
            size=self._index.size,
            capacity=self._index.capacity,
            mark=self._ledger.mark,
            leased=self._ledger.leased,
            draws=self._index.draws,
            evicted=self._index.evicted,
            blocked_lease_s=self._blocked_lease_s,
            blocked_draw_s=self._blocked_draw_s,
            **counted,
        )

    async def snapshot(self, folder: str) -> dict[str, Any]:
        """Have every shard write its file to ``folder``; returns the front's own state at the same moment."""
        state = {
            "index": self._index.state(),
            "ledger": self._ledger.state(),
            "limiter": replace(self._limiter),
            "held": dict(self._held),
            "visible": self._visible,
            "counts": Counter(self._counts),
            "shards": len(self._shards),
            "layout": self._layout,
        }
        # Sent before anything else can change: behind all earlier inserts, ahead of all later ones.
        await asyncio.gather(
            *[shard.save.remote(shard_file(folder, number)) for number, shard in enumerate(self._shards)]
        )
        return state

    async def restore(self, state: dict[str, Any], folder: str) -> None:
        """Be what the snapshot was taken from, over as many shards as there are now."""
        files = [shard_file(folder, number) for number in range(state["shards"])]
        # Earlier snapshots do not say their layout; every shard looks through all of them.
        same = state.get("layout") == self._layout
        await asyncio.gather(
            *[
                shard.load.remote([files[number]] if same else files, number, self._layout)
                for number, shard in enumerate(self._shards)
            ]
        )
        self._index.restore(state["index"])
        self._ledger = Ledger.restored(state["ledger"])
        self._limiter.resume(state["limiter"])
        self._held, self._visible, self._counts = state["held"], state["visible"], state["counts"]
        self._settle()

    async def close(self) -> None:
        self._closed = True
        for waiting in self._leases:
            if not waiting.future.done():
                waiting.future.set_result(None)
        for future in self._draws:
            if not future.done():
                future.set_exception(RuntimeError(CLOSED))
        self._leases.clear()
        self._draws.clear()

    def _by_shard(self, slots: list[int]) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = {}
        for position, slot in enumerate(slots):
            groups.setdefault(self._layout.shard(slot), []).append(position)
        return groups


def shard_file(folder: str, number: int) -> str:
    return str(Path(folder) / f"shard-{number:04d}.bin")
