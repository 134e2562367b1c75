"""Batches of pairs that the actors write: draws, staleness bound, publication, canary, idle times."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import ray

from actors.token_table import TokenTable
from buffer.client import Draw, ReplayBuffer
from cluster.config.run_config import RunConfig
from cluster.reports.pair_quality import pair_quality
from cluster.sources.base import Batch
from cluster.weights.publisher import Publisher
from cluster.workers.actor_factory import ActorFactory
from cluster.workers.actor_pool import Fleet
from cluster.workers.control import open_control
from cluster.workers.learner_group import LearnerGroup
from cluster.workers.ray_session import Hardware
from contracts.errors import UserError
from contracts.pair import ReferenceScore

CANARY_ROWS = 4
CANARY_TOKENS = 256
HOPELESS_STEPS = 20
"""Steps' worth of segments, all equal to the originals, after which an empty buffer ends the run."""


def start_writing(
    config: RunConfig,
    hardware: Hardware,
    table: TokenTable,
    eos: int | list[int],
    group: LearnerGroup,
    say: Callable[[str], None],
    stack: ExitStack,
) -> WrittenPairs:
    """Start buffer and actors; they are shut down with ``stack``."""
    slack = config.weights.max_staleness
    buffer = ReplayBuffer.start(
        config.buffer,
        seed=config.seed,
        batch_size=config.learner.batch_size,
        inserts_per_step=config.inserts_per_step,
        ordered=slack == 0,
        ahead=slack,
        behind=slack,
    )
    stack.callback(buffer.shutdown)
    factory = ActorFactory.of(config, hardware, table, eos, buffer)
    publisher = Publisher(
        factory.backend, timeout_s=config.weights.timeout_s, workers_per_engine=config.generation.tensor_parallel
    )
    fleet = Fleet(factory, buffer, say, group.retarget, group.send, open_control(config.name))
    stack.callback(fleet.shutdown)
    fleet.add(config.generation.actors)
    # Engines load while the learner does, and actors are looked after while it steps.
    group.wait = fleet.wait
    group.publisher = publisher
    return WrittenPairs(config, table, buffer, fleet, group)


class WrittenPairs:
    """The actors' side of the loop as the learner sees it (method ``sapo``).

    Lockstep (``max_staleness`` 0): generate, draw, step, publish, wait for every actor, generate.
    Otherwise the next batch is drawn while the learner steps, and step s + 1 is begun only when
    every actor holds weights of version s + 1 - max_staleness or newer.
    """

    def __init__(
        self, config: RunConfig, table: TokenTable, buffer: ReplayBuffer, fleet: Fleet, group: LearnerGroup
    ) -> None:
        self._config, self._buffer, self._fleet, self._group = config, buffer, fleet, group
        self._weights, self._rows = config.weights, len(table)
        self._lockstep = config.weights.max_staleness == 0
        self._next: ray.ObjectRef | None = None
        self._accounted = np.zeros(4, np.int64)
        self._identical = float("nan")
        self._canary = [
            np.concatenate((row.prompt, row.response))[:CANARY_TOKENS].tolist()
            for row in (table[i] for i in range(min(CANARY_ROWS, len(table))))
        ]
        self.waited = {"draw_wait_s": 0.0, "weights_wait_s": 0.0, "publish_s": 0.0}
        """Seconds in which the learner stood still, by cause, over the run."""

    def begin(self, step: int, total_steps: int) -> None:
        """Publish the average of ``step`` and wait until an actor generates with it."""
        self._total = total_steps
        self._publish(step)
        self._fleet.wait_for_version(step)

    def next(self, step: int) -> Batch:
        metrics = {}
        if not self._lockstep:
            # Publications happen every so many steps; the newest that the bound can ask for is awaited.
            bound = step + 1 - self._weights.max_staleness
            due = -(-bound // self._weights.publish_every) * self._weights.publish_every
            newest = step - step % self._weights.publish_every
            metrics["time/weights_wait_s"] = self._timed(
                "weights_wait_s", lambda: self._fleet.wait_for_version(min(due, newest))
            )
            if self._weights.publish_every > 1:
                self._buffer.advance(step, published=self._fleet.held())
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
        tickets = batch.tickets if batch.tickets is not None else ()
        fresh = [(t, s) for t, s in zip(tickets, scores, strict=True) if s is not None]
        if fresh:
            self._buffer.annotate(np.array([t for t, _ in fresh]), [s for _, s in fresh])
        if self._config.cluster.colocate:
            self._fleet.call("wake")
        metrics = {"weights/version": float(self._fleet.held())}
        published = step < self._total and step % self._weights.publish_every == 0
        if published:
            metrics["time/publish_s"] = self._timed("publish_s", lambda: self._publish(step))
            if self._lockstep:
                metrics["time/weights_wait_s"] = self._timed(
                    "weights_wait_s", lambda: self._fleet.wait_for_version(step)
                )
                metrics["weights/version"] = float(step)
        # A version counts for admission when it is on its way; one that has to last for several steps (SPIN's
        # iterations) only when every actor has it.
        self._buffer.advance(step, published=step if self._weights.publish_every == 1 else self._fleet.held())
        self._fleet.poll()
        if published and self._canary_due(step):
            metrics["weights/canary_nats"] = self._sing(step)
        return metrics

    def snapshot(self, folder: Path) -> None:
        self._buffer.snapshot(folder / "buffer")

    def restore(self, folder: Path) -> None:
        self._buffer.restore(folder / "buffer")

    def actors_idle_s(self) -> list[float]:
        """Seconds in which each generating actor had nothing to write."""
        return [status["idle_s"] for status in self._fleet.call("status")]

    def _publish(self, version: int) -> None:
        self._group.stage(version)
        self._fleet.publish()

    def _canary_due(self, step: int) -> bool:
        every = self._weights.canary_every
        return bool(every) and step // self._weights.publish_every % every == 0

    def _sing(self, version: int) -> float:
        """Compare every actor's log-probabilities of fixed rows with the learner's; largest difference in nats.

        An actor that is off is replaced. Called right after the publication of ``version``, so that the
        two sides speak of the same weights.
        """
        self._fleet.wait_for_version(version)
        ours = self._group.score_average(self._canary)
        worst = 0.0
        members = [m for m in self._fleet.running() if m.version == version]
        calls = [m.handle.score.remote(self._canary) for m in members]
        for member, call in zip(members, calls, strict=True):
            try:
                theirs = ray.get(call)
            except ray.exceptions.RayActorError:
                continue  # its death is handled where its ``run`` is awaited
            off = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(ours, theirs, strict=True))
            worst = max(worst, off)
            if off > self._weights.canary_tolerance:
                self._fleet.replace(member, f"its log-probabilities are {off:.3g} nats off the learner's")
        return worst

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
        """End a run whose actors write nothing that can be used.

        Raises:
            UserError: many steps' worth of segments were written and no pair came of them.
        """
        stats = self._buffer.stats()
        wasted = stats.identical + stats.rejected + stats.failed
        if stats.inserted or wasted < HOPELESS_STEPS * self._config.inserts_per_step:
            return
        if stats.identical >= max(stats.rejected, stats.failed):
            raise UserError(
                f"generation: all {wasted} segments written so far equal the originals: there is nothing to prefer; "
                "the start has memorised the data: train it less, raise generation.temperature, or use other data"
            )
        if stats.rejected >= stats.failed:
            raise UserError(
                f"generation.after_eos {self._config.generation.after_eos}: all {wasted} segments written so far end "
                "the response early and are refused; set drop"
            )
        raise UserError(
            f"generation: the engine refused all {wasted} requests so far; the reasons are in the actors' log"
        )

    def _timed(self, cause: str, action: Callable[[], None]) -> float:
        started = time.monotonic()
        action()
        return self._waited(cause, started)

    def _waited(self, cause: str, started: float) -> float:
        seconds = time.monotonic() - started
        self.waited[cause] += seconds
        return seconds
