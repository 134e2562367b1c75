"""The handle through which actors insert and the learner draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from buffer.codec import decode, encode
from buffer.config import BufferConfig
from buffer.coordinator import Coordinator
from buffer.messages import (
    BufferStats,
    CoordinatorState,
    DrawAnswer,
    Finished,
    InsertRequest,
    InsertRow,
    ItemScores,
    LeaseAnswer,
    SlotPayloads,
)
from buffer.shard import DISK_LANE, Shard
from buffer.snapshot import readable_state, require_shards, write_state
from contracts.pair import PreferencePair, ReferenceScore


@dataclass(frozen=True)
class Draw:
    """One batch and how it stood in the buffer. Arrays as in ``buffer.index.Drawn``."""

    pairs: list[PreferencePair]
    keys: np.ndarray
    draw_counts: np.ndarray
    ages: np.ndarray
    staleness: np.ndarray
    stats: BufferStats


def as_draw(answer: DrawAnswer, shares: list[SlotPayloads]) -> Draw:
    """The pairs of a draw.

    Args:
        shares: what ``answer.payloads`` refer to.
    """
    payloads: dict[int, bytes] = {}
    for share in shares:
        payloads.update(share.payloads)
    drawn = answer.drawn
    pairs = [decode(payloads[slot]) for slot in drawn.slots.tolist()]
    return Draw(pairs, drawn.keys, drawn.draw_counts, drawn.ages, drawn.staleness, answer.stats)


ANSWER_S = 60.0
"""Longest wait for what coordinator and shards answer in milliseconds; Ray then raises ``GetTimeoutError``."""
READ_S = 1800.0
"""Longest wait until the shards have read a snapshot, however large."""


@dataclass(frozen=True)
class ReplayBuffer:
    """Every process may hold a copy."""

    coordinator: Any
    """Actor handle of ``Coordinator``."""
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
        label: str | None = None,
        namespace: str | None = None,
    ) -> ReplayBuffer:
        """Start coordinator and shards.

        Args:
            batch_size: pairs per draw.
            inserts_per_step: plan indices per draw.
            ordered: contents are independent of the order of arrival (lockstep).
            ahead: optimizer steps before the newest published weights' own turn that work may be begun.
            behind: draws that may come before their own step's pairs.
            label: with which the actors' names on the cluster begin; None: they have no names.
            namespace: Ray's namespace of the names.
        """

        def named(part: str) -> dict[str, Any]:
            return {"name": f"{label}-{part}", "namespace": namespace} if label else {}

        shards: tuple[Any, ...] = tuple(
            ray.remote(concurrency_groups={DISK_LANE: 1})(Shard)
            .options(num_cpus=0, **named(f"shard-{number}"))
            .remote()
            for number in range(config.shards)
        )
        coordinator = (
            ray.remote(Coordinator)
            .options(num_cpus=0, max_concurrency=10_000, **named("coordinator"))
            .remote(
                config,
                seed=seed,
                batch_size=batch_size,
                inserts_per_step=inserts_per_step,
                ordered=ordered,
                ahead=ahead,
                behind=behind,
                shards=shards,
            )
        )
        return cls(coordinator, shards)

    async def lease(self, actor: str, count: int) -> list[int] | None:
        """Up to ``count`` plan indices, at least one; waits for admission. None: the buffer is closed."""
        answer: LeaseAnswer = await self.coordinator.lease.remote(actor, count)
        return answer.indices

    async def insert(self, actor: str, finished: list[Finished]) -> None:
        """Account for indices and enter their pairs."""
        rows, tokens = [], 0
        for done in finished:
            payload, version = None, -1
            if done.pair is not None:
                payload, version = encode(done.pair), done.pair.newest_version
                tokens += len(done.pair.replacement)
            rows.append(InsertRow(done.index, done.outcome, payload, version))
        await self.coordinator.insert.remote(InsertRequest(actor, rows, tokens))

    def draw_ref(self) -> ray.ObjectRef:
        """A draw under way, for ``resolve``; None: it was withdrawn."""
        return self.coordinator.draw.remote()

    def withdraw_draws(self) -> None:
        """Give up the draws that wait for pairs. One that has its batch by now keeps it."""
        self.coordinator.withdraw_draws.remote()

    def resolve(self, answer: DrawAnswer) -> Draw:
        """The pairs of an answered ``draw_ref``."""
        return as_draw(answer, ray.get(answer.payloads, timeout=ANSWER_S))

    def draw(self) -> Draw:
        """Draw one batch; waits until the limiter allows it."""
        return self.resolve(ray.get(self.draw_ref()))

    def annotate(self, keys: np.ndarray, scores: list[ReferenceScore]) -> None:
        """Keep reference log-probabilities with the pairs that are still there; keys int64 [pairs]."""
        by_key = dict(zip(keys.tolist(), scores, strict=True))
        ray.get(self.coordinator.annotate.remote(ItemScores(by_key)), timeout=ANSWER_S)

    def advance(self, step: int, published: int | None = None) -> None:
        """The learner has completed ``step`` optimizer steps; all actors generate with weights of step ``published`` or
        newer (default: ``step``)."""
        ray.get(self.coordinator.advance.remote(step, step if published is None else published), timeout=ANSWER_S)

    def release(self, actor: str) -> list[int]:
        """Hand a lost actor's indices to the others; returns them. Leases in its name are answered None from now on."""
        return ray.get(self.coordinator.release.remote(actor), timeout=ANSWER_S)

    def stats(self) -> BufferStats:
        return ray.get(self.coordinator.stats.remote(), timeout=ANSWER_S)

    def stats_ref(self) -> ray.ObjectRef:
        """``stats`` under way."""
        return self.coordinator.stats.remote()

    def stacks_refs(self) -> dict[str, ray.ObjectRef]:
        """What coordinator and shards are doing, under way, by their names."""
        parts = {"coordinator": self.coordinator} | {f"shard {n}": shard for n, shard in enumerate(self.shards)}
        return {name: part.stacks.remote() for name, part in parts.items()}

    def snapshot(self, folder: Path | str) -> Callable[[], None]:
        """Take contents, draw counts, counters and the plan's mark as they are now, and begin to write them to
        ``folder``, the pairs by each shard itself.

        Returns:
            What waits until the folder is whole; a caller that wants all or nothing renames it then. It raises
            ``OSError`` where a file can't be written, and ``UserError`` where a shard on another node wrote to a folder
            that this one does not see. It may be called in another thread.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state: CoordinatorState = ray.get(self.coordinator.snapshot.remote(folder), timeout=ANSWER_S)

        def written() -> None:
            write_state(folder, state)
            ray.get([shard.written.options(concurrency_group=DISK_LANE).remote() for shard in self.shards])
            require_shards(folder, state.layout.shards, "it must be on a file system that all nodes share")

        return written

    def restore(self, folder: Path | str) -> None:
        """Be what ``snapshot`` wrote, over any number of shards.

        Raises:
            UserError: the snapshot is not whole, of another format, or of a buffer of another capacity.
        """
        folder = Path(folder)
        state = readable_state(folder, self.stats().capacity)
        ray.get(self.coordinator.restore.remote(state, folder), timeout=READ_S)

    def close(self) -> None:
        """Wake all waiters: leases answer None, draws raise."""
        ray.get(self.coordinator.close.remote(), timeout=ANSWER_S)

    def shutdown(self) -> None:
        for actor in (self.coordinator, *self.shards):
            ray.kill(actor)
