"""The handle through which actors insert and the learner draws."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from buffer.codec import decode, encode
from buffer.config import BufferConfig
from buffer.coordinator import BufferStats, Front, shard_file
from buffer.shard import Shard
from contracts.errors import UserError
from contracts.pair import Outcome, PreferencePair, ReferenceScore

FRONT_FILE = "front.pkl"


@dataclass(frozen=True)
class Draw:
    """One batch and how it stood in the buffer. Arrays as in ``buffer.index.Drawn``."""

    pairs: list[PreferencePair]
    tickets: np.ndarray
    draw_counts: np.ndarray
    ages: np.ndarray
    staleness: np.ndarray
    stats: BufferStats


@dataclass(frozen=True)
class ReplayBuffer:
    """Picklable; every process may hold one."""

    front: Any
    """Actor handle of ``Front``."""
    shards: tuple[Any, ...]
    """Actor handles of ``Shard``."""

    @classmethod
    def start(
        cls,
        config: BufferConfig,
        *,
        seed: int,
        batch_size: int,
        inserts_per_step: int,
        ordered: bool,
        ahead: int,
        behind: int,
    ) -> ReplayBuffer:
        """Start front and shards.

        Args:
            batch_size: pairs per draw.
            inserts_per_step: plan indices per draw.
            ordered: contents are independent of the order of arrival (lockstep).
            ahead: optimizer steps before the newest published weights' own turn that work may be begun.
            behind: draws that may come before their own step's pairs.
        """
        shards: tuple[Any, ...] = tuple(ray.remote(Shard).options(num_cpus=0).remote() for _ in range(config.shards))
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
        written = iter(pairs)
        rows: list[tuple[int, int, bytes | None, int]] = []
        for index, outcome in outcomes:
            if outcome is Outcome.INSERTED:
                pair = next(written)
                rows.append((index, int(outcome), encode(pair), pair.newest_version))
            else:
                rows.append((index, int(outcome), None, -1))
        tokens = sum(len(pair.replacement) for pair in pairs)
        await self.front.insert.remote(actor, rows, tokens)

    def draw_ref(self) -> ray.ObjectRef:
        """A draw under way, for ``resolve``."""
        return self.front.draw.remote()

    def resolve(self, answer: tuple) -> Draw:
        """The pairs of an answered ``draw_ref``."""
        drawn, payloads, stats = answer
        found: dict[int, PreferencePair] = {}
        for (members, _), blobs in zip(payloads, ray.get([ref for _, ref in payloads]), strict=True):
            found.update(zip(members, map(decode, blobs), strict=True))
        pairs = [found[member] for member in range(len(found))]
        return Draw(pairs, drawn.tickets, drawn.draw_counts, drawn.ages, drawn.staleness, stats)

    def draw(self) -> Draw:
        """Draw one batch; waits until the limiter allows it."""
        return self.resolve(ray.get(self.draw_ref()))

    def annotate(self, tickets: np.ndarray, scores: list[ReferenceScore]) -> None:
        """Keep reference log-probabilities with the pairs that are still there."""
        ray.get(self.front.annotate.remote(tickets, scores))

    def advance(self, step: int, published: int | None = None) -> None:
        """The learner has completed ``step`` optimizer steps; all actors generate with weights of step ``published`` or
        newer (default: ``step``)."""
        ray.get(self.front.advance.remote(step, step if published is None else published))

    def release(self, actor: str) -> list[int]:
        """Hand a lost actor's indices to the others; returns them. Leases in its name are answered None from now on."""
        return ray.get(self.front.release.remote(actor))

    def stats(self) -> BufferStats:
        return ray.get(self.front.stats.remote())

    def snapshot(self, folder: Path | str) -> None:
        """Write contents, draw counts, counters and the plan's mark to ``folder``, the pairs by each shard itself.

        The folder is whole when the call returns; a caller that wants all or nothing renames it then.

        Raises:
            UserError: a shard on another node wrote to a folder that this one does not see.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = ray.get(self.front.snapshot.remote(str(folder)))
        _require_shards(folder, state["shards"], "it must be on a file system that all nodes share")
        (folder / FRONT_FILE).write_bytes(pickle.dumps(state, protocol=5))

    def restore(self, folder: Path | str) -> None:
        """Be what ``snapshot`` wrote, over any number of shards.

        Raises:
            UserError: the snapshot is not whole, or of a buffer of another capacity.
        """
        folder = Path(folder)
        if not (folder / FRONT_FILE).exists():
            raise UserError(f"{folder}: no snapshot of a replay buffer: {FRONT_FILE} is missing")
        state = pickle.loads((folder / FRONT_FILE).read_bytes())
        _require_shards(folder, state["shards"], "the snapshot is not whole")
        capacity, saved = self.stats().capacity, state["index"]["capacity"]
        if capacity != saved:
            raise UserError(f"buffer.capacity {capacity}: the snapshot in {folder} was taken at {saved}; keep that")
        ray.get(self.front.restore.remote(state, str(folder)))

    def close(self) -> None:
        """Wake all waiters: leases answer None, draws raise."""
        ray.get(self.front.close.remote())

    def shutdown(self) -> None:
        for actor in (self.front, *self.shards):
            ray.kill(actor)


def _require_shards(folder: Path, shards: int, otherwise: str) -> None:
    for number in range(shards):
        if not Path(shard_file(str(folder), number)).exists():
            raise UserError(f"{shard_file(str(folder), number)} is missing: {otherwise}")
