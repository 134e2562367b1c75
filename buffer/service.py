"""The Ray actors of the buffer: one front that orders everything, and shards that hold the payloads."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from buffer.config import BufferConfig
from buffer.ledger import Ledger
from buffer.limiter import RateLimiter
from buffer.record import Outcome, PreferencePair, ReferenceScore
from buffer.replay import Drawn, ReplayIndex


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


class Shard:
    """Payloads by slot. Only the front calls it, so it sees one order of events."""

    def __init__(self) -> None:
        self._pairs: dict[int, bytes] = {}

    def insert(self, slots: list[int], pairs: list[bytes]) -> None:
        self._pairs.update(zip(slots, pairs, strict=True))

    def get(self, slots: list[int]) -> list[bytes]:
        return [self._pairs[slot] for slot in slots]

    def annotate(self, slots: list[int], scores: list[ReferenceScore]) -> None:
        for slot, score in zip(slots, scores, strict=True):
            self._pairs[slot] = encode(decode(self._pairs[slot]).with_reference(score))

    def state(self) -> dict[int, bytes]:
        return self._pairs

    def restore(self, state: dict[int, bytes]) -> None:
        self._pairs = state

    def bytes_held(self) -> int:
        return sum(map(len, self._pairs.values()))


class Front:
    """Tickets, weights, leases and the limiter. Awaiting callers are woken by changes, nobody polls."""

    def __init__(
        self, config: BufferConfig, seed: int, batch_size: int, inserts_per_step: int, ordered: bool,
        ahead: int, behind: int, shards: list,
    ) -> None:  # fmt: skip
        self._batch, self._ordered, self._shards = batch_size, ordered, shards
        self._index = ReplayIndex(config, seed)
        self._ledger = Ledger()
        needed = max(batch_size, config.min_size)
        # What has to be there before the first draw beyond the first step's own inserts.
        warm = max(0, -(-(needed - inserts_per_step) // inserts_per_step)) * inserts_per_step
        self._limiter = RateLimiter(inserts_per_step, needed, ahead, behind, warm)
        self._held: dict[int, tuple[Outcome, bytes | None, int, int, int]] = {}
        self._visible = 0
        self._counts: Counter[str] = Counter()
        self._blocked_lease_s = self._blocked_draw_s = 0.0
        self._changed = asyncio.Condition()
        self._closed = False

    async def lease(self, actor: str, count: int) -> list[int] | None:
        started = time.monotonic()
        async with self._changed:
            while not self._closed:
                indices = self._ledger.lease(actor, count, self._limiter.admitted())
                if indices:
                    self._blocked_lease_s += time.monotonic() - started
                    return indices
                await self._changed.wait()
        return None

    async def insert(self, actor: str, outcomes: list, box: list, tokens: int) -> None:
        """``outcomes``: (index, Outcome, position in the payload or -1, version); ``box``: [reference to list of bytes]."""
        payload = (await box[0]) if outcomes and box else []
        async with self._changed:
            self._counts["generated_tokens"] += tokens
            for index, outcome, position, version in outcomes:
                if not self._ledger.account(index):
                    self._counts["duplicates"] += 1
                    continue
                pair = payload[position] if position >= 0 else None
                self._held[index] = (Outcome(outcome), pair, version, self._limiter.steps, len(self._held))
            self._make_visible()
            self._limiter.feed(self._index.size)
            self._changed.notify_all()

    def _make_visible(self) -> None:
        """Enter what may be seen: everything, or in lockstep the unbroken run of indices."""
        ready = [i for i in sorted(self._held) if i < self._ledger.mark] if self._ordered else list(self._held)
        slots: list[int] = []
        pairs: list[bytes] = []
        for index in ready:
            outcome, pair, version, step, _ = self._held.pop(index)
            self._counts[outcome.name.lower()] += 1
            self._limiter.accounted += 1
            if outcome is Outcome.INSERTED and pair is not None:
                slots.append(self._index.insert(version, step - version) % self._index.capacity)
                pairs.append(pair)
        for shard, members in self._by_shard(slots).items():
            shard_slots = [slots[i] for i in members]
            self._shards[shard].insert.remote(shard_slots, [pairs[i] for i in members])

    async def draw(self) -> tuple[Drawn, list, BufferStats]:
        """Waits until the limiter allows a draw; returns the draw, (members, reference to payloads) by shard, and stats."""
        started = time.monotonic()
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._limiter.may_draw(self._index.size))
            self._blocked_draw_s += time.monotonic() - started
            if self._closed:
                raise RuntimeError("the buffer is closed")
            drawn = self._index.draw(self._batch)
            self._limiter.draws += 1
            slots = drawn.slots.tolist()
            payloads = [
                (members, self._shards[shard].get.remote([slots[i] for i in members]))
                for shard, members in self._by_shard(slots).items()
            ]
            self._limiter.feed(self._index.size)
            self._changed.notify_all()
            return drawn, payloads, self._stats()

    async def annotate(self, tickets: np.ndarray, scores: list[ReferenceScore]) -> None:
        kept = [i for i, ticket in enumerate(tickets.tolist()) if self._index.holds(ticket)]
        slots = [int(tickets[i]) % self._index.capacity for i in kept]
        for shard, members in self._by_shard(slots).items():
            self._shards[shard].annotate.remote([slots[m] for m in members], [scores[kept[m]] for m in members])

    async def advance(self, step: int) -> None:
        async with self._changed:
            self._limiter.steps = step
            self._index.expire(step)
            self._limiter.feed(self._index.size)
            self._changed.notify_all()

    async def release(self, actor: str) -> list[int]:
        async with self._changed:
            indices = self._ledger.release(actor)
            self._changed.notify_all()
            return indices

    async def stats(self) -> BufferStats:
        return self._stats()

    def _stats(self) -> BufferStats:
        counted = {
            n: self._counts[n]
            for n in ("inserted", "identical", "rejected", "failed", "duplicates", "generated_tokens")
        }
        return BufferStats(
            size=self._index.size, capacity=self._index.capacity, mark=self._ledger.mark, leased=self._ledger.leased,
            draws=self._index.draws, evicted=self._index.evicted, blocked_lease_s=self._blocked_lease_s,
            blocked_draw_s=self._blocked_draw_s, **counted,
        )  # fmt: skip

    async def snapshot(self, folder: str) -> None:
        async with self._changed:
            limiter = replace(self._limiter)
            state = {
                "index": self._index.state(), "ledger": self._ledger.state(), "limiter": limiter,
                "held": self._held, "counts": self._counts,
                "shards": [await shard.state.remote() for shard in self._shards],
            }  # fmt: skip
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / "buffer.pkl").write_bytes(pickle.dumps(state))

    async def restore(self, folder: str) -> None:
        state = pickle.loads((Path(folder) / "buffer.pkl").read_bytes())
        async with self._changed:
            self._index.restore(state["index"])
            self._ledger = Ledger.restored(state["ledger"])
            self._limiter = state["limiter"]
            self._held, self._counts = state["held"], state["counts"]
            merged = {slot: pair for shard in state["shards"] for slot, pair in shard.items()}
            for number, shard in enumerate(self._shards):
                mine = {s: p for s, p in merged.items() if s % len(self._shards) == number}
                await shard.restore.remote(mine)
            self._changed.notify_all()

    async def close(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _by_shard(self, slots: list[int]) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = {}
        for position, slot in enumerate(slots):
            groups.setdefault(slot % len(self._shards), []).append(position)
        return groups


def encode(pair: PreferencePair) -> bytes:
    return pickle.dumps(pair, protocol=5)


def decode(payload: bytes) -> PreferencePair:
    return pickle.loads(payload)
