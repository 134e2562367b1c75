"""Batches of pairs that the actors write: draws, staleness bound, publication, canary, idle times."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import ray

from actors.tokens import TokenTable
from buffer.client import Draw, ReplayBuffer
from buffer.errors import UserError
from buffer.record import ReferenceScore
from cluster.batches import Batch
from cluster.config import RunConfig
from cluster.fleet import Fleet, State
from cluster.group import LearnerGroup
from cluster.quality import pair_quality

CANARY_ROWS = 4
CANARY_TOKENS = 256
HOPELESS_STEPS = 20
"""Steps' worth of segments, all equal to the originals, after which an empty buffer ends the run."""


class WrittenPairs:
    """The actors' side of the loop as the learner sees it (method ``sapo``).

    Lockstep (``max_staleness`` 0): generate, draw, step, publish, wait for every actor, generate.
    Otherwise the next batch is drawn while the learner steps, and step s + 1 is begun only when
    every actor holds weights of version s + 1 - max_staleness or newer.
    """

    def __init__(
        self, config: RunConfig, table: TokenTable, buffer: ReplayBuffer, fleet: Fleet, group: LearnerGroup,
        total_steps: int,
    ) -> None:  # fmt: skip
        self._config, self._buffer, self._fleet, self._group = config, buffer, fleet, group
        self._weights, self._total, self._rows = config.weights, total_steps, len(table)
        self._lockstep = config.weights.max_staleness == 0
        self._next: ray.ObjectRef | None = None
        self._publications = 0
        self._accounted = np.zeros(4, np.int64)
        self._identical = float("nan")
        self._canary = [
            np.concatenate((row.prompt, row.response))[:CANARY_TOKENS].tolist()
            for row in (table[i] for i in range(min(CANARY_ROWS, len(table))))
        ]
        self.waited = {"draw_wait_s": 0.0, "weights_wait_s": 0.0, "publish_s": 0.0}
        """Seconds in which the learner stood still, by cause, over the run."""

    def begin(self, step: int) -> None:
        """Publish the average of ``step`` and wait until an actor generates with it."""
        self._publish(step)
        self._fleet.wait_for_version(step)

    def next(self, step: int) -> Batch:
        metrics = {}
        if not self._lockstep:
            # Publications happen every so many steps; the newest that the bound can ask for is awaited.
            bound = step + 1 - self._weights.max_staleness
            due = -(-bound // self._weights.publish_every) * self._weights.publish_every
            metrics["time/weights_wait_s"] = self._timed(
                "weights_wait_s", lambda: self._fleet.wait_for_version(min(due, step))
            )
        started = time.monotonic()
        draw: Draw = self._buffer.resolve(
            self._fleet.wait(self._next or self._buffer.draw_ref(), tick=self._stop_if_hopeless)
        )
        metrics["time/draw_wait_s"] = self._waited("draw_wait_s", started)
        prefetch = not self._lockstep and step + 1 < self._total
        self._next = self._buffer.draw_ref() if prefetch else None
        if self._config.cluster.colocate:
            self._fleet.call("sleep")
        return Batch(draw.pairs, draw.tickets, metrics | self._draw_metrics(draw, step))

    def stepped(self, step: int, batch: Batch, scores: list[ReferenceScore | None]) -> dict[str, float]:
        fresh = [(t, s) for t, s in zip(batch.tickets, scores, strict=True) if s is not None]
        if fresh:
            self._buffer.annotate(np.array([t for t, _ in fresh]), [s for _, s in fresh])
        if self._config.cluster.colocate:
            self._fleet.call("wake")
        metrics = {"weights/version": float(min((m.version for m in self._running()), default=-1))}
        published = step < self._total and step % self._weights.publish_every == 0
        if published:
            metrics["time/publish_s"] = self._timed("publish_s", lambda: self._publish(step))
            if self._lockstep:
                metrics["time/weights_wait_s"] = self._timed(
                    "weights_wait_s", lambda: self._fleet.wait_for_version(step)
                )
                metrics["weights/version"] = float(step)
        self._buffer.advance(step)
        self._fleet.poll()
        if published and self._canary_due():
            metrics["weights/canary_nats"] = self._sing(step)
        return metrics

    def _publish(self, version: int) -> None:
        self._group.stage(version)
        self._fleet.publish()
        self._publications += 1

    def _canary_due(self) -> bool:
        every = self._weights.canary_every
        return bool(every) and self._publications % every == 0

    def _sing(self, version: int) -> float:
        """Compare every actor's log-probabilities of fixed rows with the learner's; largest difference in nats.

        An actor that is off is replaced. Called right after the publication of ``version``, so that the
        two sides speak of the same weights.
        """
        self._fleet.wait_for_version(version)
        ours = self._group.score_average(self._canary)
        worst = 0.0
        for member in self._running():
            theirs = ray.get(member.handle.score.remote(self._canary))
            if member.version != version:
                continue
            off = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(ours, theirs, strict=True))
            worst = max(worst, off)
            if off > self._weights.canary_tolerance:
                self._fleet.replace(member, f"its log-probabilities are {off:.3g} nats off the learner's")
        return worst

    def _running(self):
        return [m for m in self._fleet.members.values() if m.state is State.RUNNING]

    def _draw_metrics(self, draw: Draw, step: int) -> dict[str, float]:
        stats = draw.stats
        accounted = np.array([stats.inserted, stats.identical, stats.rejected, stats.failed], np.int64)
        fresh = accounted - self._accounted
        self._accounted = accounted
        if fresh.sum():
            self._identical = float(fresh[1] / fresh.sum())
        staleness = draw.staleness
        age = step - np.array([p.version for p in draw.pairs])
        return {
            "pairs/inserted": stats.inserted,
            "pairs/drawn": stats.draws * self._config.learner.batch_size,
            "pairs/identical_fraction": self._identical,
            "pairs/identical": stats.identical,
            "pairs/rejected": stats.rejected,
            "pairs/failed": stats.failed,
            "staleness/mean": float(staleness.mean()),
            "staleness/max": float(staleness.max()),
            "age/steps_mean": float(age.mean()),
            "age/steps_max": float(age.max()),
            "age/pairs_mean": float(draw.ages.mean()),
            "draws/mean": float(draw.draw_counts.mean()),
            "draws/max": float(draw.draw_counts.max()),
            "buffer/size": stats.size,
            "buffer/blocked_lease_s": stats.blocked_lease_s,
            "buffer/blocked_draw_s": stats.blocked_draw_s,
            "tokens/generated": stats.generated_tokens,
            "epoch": stats.mark / (self._config.generation.responses_per_prompt * self._rows),
        } | pair_quality(draw.pairs)

    def _stop_if_hopeless(self) -> None:
        """End a run whose actors only repeat the data.

        Raises:
            UserError: many steps' worth of segments were written and none differed from its original.
        """
        stats = self._buffer.stats()
        written = stats.identical + stats.inserted
        if stats.inserted == 0 and stats.identical >= HOPELESS_STEPS * self._config.inserts_per_step:
            raise UserError(
                f"generation: all {written} segments written so far equal the originals: there is nothing to prefer; "
                "the start has memorised the data: train it less, raise generation.temperature, or use other data"
            )

    def _timed(self, cause: str, action: Callable[[], None]) -> float:
        started = time.monotonic()
        action()
        return self._waited(cause, started)

    def _waited(self, cause: str, started: float) -> float:
        seconds = time.monotonic() - started
        self.waited[cause] += seconds
        return seconds
