"""The handle through which actors insert and the learner draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from ray.actor import ActorHandle

from buffer.config import BufferConfig
from buffer.record import Outcome, PreferencePair, ReferenceScore
from buffer.service import BufferStats, Front, Shard, decode, encode


@dataclass(frozen=True)
class Draw:
    """One batch and how it stood in the buffer. Arrays as in ``buffer.replay.Drawn``."""

    pairs: list[PreferencePair]
    tickets: np.ndarray
    draw_counts: np.ndarray
    ages: np.ndarray
    staleness: np.ndarray
    stats: BufferStats


@dataclass(frozen=True)
class ReplayBuffer:
    """Picklable; every process may hold one."""

    front: ActorHandle
    shards: tuple[ActorHandle, ...]

    @classmethod
    def start(
        cls, config: BufferConfig, *, seed: int, batch_size: int, inserts_per_step: int, ordered: bool,
        ahead: int, behind: int,
    ) -> ReplayBuffer:  # fmt: skip
        """Start front and shards. ``ordered`` makes contents independent of arrival order (lockstep)."""
        shards = tuple(ray.remote(Shard).options(num_cpus=0).remote() for _ in range(config.shards))
        front = (
            ray.remote(Front)
            .options(num_cpus=0, max_concurrency=10_000)
            .remote(config, seed, batch_size, inserts_per_step, ordered, ahead, behind, list(shards))
        )
        return cls(front, shards)

    async def lease(self, actor: str, count: int) -> list[int] | None:
        """Up to ``count`` plan indices, at least one; waits for admission. None: the buffer is closed."""
        return await self.front.lease.remote(actor, count)

    async def insert(self, actor: str, outcomes: list[tuple[int, Outcome]], pairs: list[PreferencePair]) -> None:
        """Account for indices. ``pairs`` are those of the INSERTED ones, in the same order."""
        rows, position = [], 0
        for index, outcome in outcomes:
            if outcome is Outcome.INSERTED:
                rows.append((index, int(outcome), position, pairs[position].newest_version))
                position += 1
            else:
                rows.append((index, int(outcome), -1, -1))
        tokens = sum(len(pair.replacement) for pair in pairs)
        box = [ray.put([encode(pair) for pair in pairs])] if pairs else []
        await self.front.insert.remote(actor, rows, box, tokens)

    def draw_ref(self) -> ray.ObjectRef:
        """A draw under way, for ``resolve``."""
        return self.front.draw.remote()

    def resolve(self, answer: tuple) -> Draw:
        """The pairs of an answered ``draw_ref``."""
        drawn, payloads, stats = answer
        pairs: list[PreferencePair | None] = [None] * len(drawn.slots)
        for (members, _), blobs in zip(payloads, ray.get([ref for _, ref in payloads]), strict=True):
            for member, blob in zip(members, blobs, strict=True):
                pairs[member] = decode(blob)
        return Draw(pairs, drawn.tickets, drawn.draw_counts, drawn.ages, drawn.staleness, stats)

    def draw(self) -> Draw:
        """Draw one batch; waits until the limiter allows it."""
        return self.resolve(ray.get(self.draw_ref()))

    def annotate(self, tickets: np.ndarray, scores: list[ReferenceScore]) -> None:
        """Keep reference log-probabilities with the pairs that are still there."""
        ray.get(self.front.annotate.remote(tickets, scores))

    def advance(self, step: int) -> None:
        """The learner has completed ``step`` optimizer steps."""
        ray.get(self.front.advance.remote(step))

    def release(self, actor: str) -> list[int]:
        """Hand a lost actor's indices to the others; returns them."""
        return ray.get(self.front.release.remote(actor))

    def stats(self) -> BufferStats:
        return ray.get(self.front.stats.remote())

    def snapshot(self, folder: Path | str) -> None:
        """Write contents, draw counts, counters and the plan's mark to ``folder``."""
        ray.get(self.front.snapshot.remote(str(folder)))

    def restore(self, folder: Path | str) -> None:
        ray.get(self.front.restore.remote(str(folder)))

    def close(self) -> None:
        """Wake all waiters: leases answer None, draws raise."""
        ray.get(self.front.close.remote())

    def shutdown(self) -> None:
        for actor in (self.front, *self.shards):
            ray.kill(actor)
