"""Batches of pairs that the generation actors make (method ``sapo``): draws, staleness bound, publication."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from buffer.client import Draw, ReplayBuffer
from cluster.config.run_config import RunConfig
from cluster.reports.activity import Activity
from cluster.sources.base import Batch, Metrics, SourceTimings
from cluster.sources.rollout_metrics import DrawMetrics, UsablePairs
from cluster.weights.parity import ParityCheck
from cluster.workers.actor_pool import LOOK_S, ActorPool
from cluster.workers.learner_group import LearnerGroup
from cluster.workers.ray_calls import Call, wait_for
from contracts.errors import UserError
from contracts.pair import PreferencePair, ReferenceScore

DOING = {"weights_wait_s": "wait for weights", "publish_s": "publish"}
"""What the driver does meanwhile."""


class RolloutSource:
    """The actors' side of the loop as the learner sees it.

    Lockstep (``max_staleness`` 0): generate, draw, step, publish, wait for every actor, generate.
    Learner and engines that share GPUs (``cluster.colocate``) do the same in turns: the engines have the GPUs from the
    publication until the draw, the learner from the draw until the next publication, checkpoints included.
    Otherwise the next batch is drawn while the learner steps, and step s + 1 is begun only when
    every actor holds weights of version s + 1 - max_staleness or newer.

    A run that is asked to end does not wait for actors any more, as they may be what was taken away: what has come
    until then is saved. Learner and engines in turns are the exception: the learner saves when it has its GPUs again.
    """

    def __init__(
        self,
        config: RunConfig,
        rows: int,
        buffer: ReplayBuffer,
        pool: ActorPool,
        group: LearnerGroup,
        parity: ParityCheck,
        activity: Activity,
        ending: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            rows: of the dataset.
            ending: whether the run was asked to end and can.
        """
        self._ending = ending
        self._activity = activity
        self._config, self._buffer, self._pool, self._group, self._parity = config, buffer, pool, group, parity
        self._weights = config.weights
        self._lockstep = config.weights.max_staleness == 0
        self._prefetched: Call | None = None
        self._draw_metrics = DrawMetrics(config.learner.batch_size, config.generation.responses_per_prompt * rows)
        self._usable = UsablePairs(config.inserts_per_step, config.generation.after_eos)
        self._total = 0
        self._unpublished: int | None = None
        """Steps done by a learner that still has the GPUs which it shares."""
        self._waited = {"draw_wait_s": 0.0, "weights_wait_s": 0.0, "publish_s": 0.0}

    def prepare(self) -> None:
        """Engines that share GPUs with the learner start first: vLLM wants the GPU for itself to measure it."""
        if self._config.cluster.colocate:
            self._pool.clear_gpus()

    def begin(self, step: int, total_steps: int) -> None:
        """Publish the EMA of ``step`` and wait until an actor generates with it."""
        self._total = total_steps
        if self._config.cluster.colocate:
            self._parity.score_ahead()
        self._publish(step)
        self._pool.wait_for_version(step, unless=self._ending)
        self._parity.calibrate(step)

    def next(self, step: int) -> Batch | None:
        metrics: Metrics = {} if self._unpublished is None else self._hand_over(self._unpublished)
        if not self._lockstep:
            # Publications happen every so many steps; the newest that the bound can ask for is awaited.
            bound = step + 1 - self._weights.max_staleness
            due = -(-bound // self._weights.publish_every) * self._weights.publish_every
            newest = step - step % self._weights.publish_every
            metrics["time/weights_wait_s"] = self._timed(
                "weights_wait_s", lambda: self._pool.wait_for_version(min(due, newest), unless=self._ending)
            )
            if self._pool.held_version() < min(due, newest):
                return None
            if self._weights.publish_every > 1:
                self._buffer.advance(step, published=self._pool.held_version())
        started = time.monotonic()
        draw = self._finished_draw()
        metrics["time/draw_wait_s"] = self._add_wait("draw_wait_s", started)
        if draw is None:
            return None
        if reason := self._usable.lack(draw.stats):  # the buffer may still hold enough old pairs to draw
            raise UserError(reason)
        prefetch = not self._lockstep and step + 1 < self._total
        self._prefetched = self._buffer.draw_ref() if prefetch else None
        if self._config.cluster.colocate:
            self._pool.clear_gpus()
            self._group.wake()
        return Batch(draw.pairs, draw.keys, metrics | self._draw_metrics.of(draw, step))

    def stepped(self, step: int, batch: Batch, scores: Sequence[ReferenceScore | None]) -> Metrics:
        keys = batch.keys if batch.keys is not None else np.zeros(0, np.int64)
        fresh = [(key, score) for key, score in zip(keys, scores, strict=True) if score is not None]
        if fresh:
            self._buffer.annotate(np.array([key for key, _ in fresh]), [score for _, score in fresh])
        if self._config.cluster.colocate:
            # A checkpoint may come first. What is leased meanwhile waits for the engines to have the GPUs.
            self._unpublished = step
            self._buffer.advance(step, published=step)
            return {"weights/version": float(self._pool.held_version())}
        metrics: Metrics = {"weights/version": float(self._pool.held_version())}
        published = step < self._total and step % self._weights.publish_every == 0
        if published:
            metrics["time/publish_s"] = self._timed("publish_s", lambda: self._publish(step))
            if self._lockstep:
                metrics["time/weights_wait_s"] = self._timed(
                    "weights_wait_s", lambda: self._pool.wait_for_version(step, unless=self._ending)
                )
                metrics["weights/version"] = float(step)
                if self._pool.held_version() < step:
                    # Asked to end. Nobody may generate what comes next with older weights.
                    self._pool.dismiss_all()
        # A version counts for admission when it is on its way; one that has to last for several steps (SPIN's
        # iterations) only when every actor has it.
        every_step = self._weights.publish_every == 1
        self._buffer.advance(step, published=step if every_step else self._pool.held_version())
        self._pool.poll()
        if published and self._parity.due(step):
            metrics |= self._parity.check(step)
        return metrics

    def samples(self, batch: Batch) -> list[PreferencePair]:
        return batch.pairs

    def timings(self) -> SourceTimings:
        idle = tuple(status.idle_s for status in self._pool.statuses())
        return SourceTimings(actors_idle_s=idle, **self._waited)

    def snapshot(self, folder: Path) -> Callable[[], None]:
        return self._buffer.snapshot(folder / "buffer")

    def restore(self, folder: Path) -> None:
        self._buffer.restore(folder / "buffer")

    def stacks(self) -> Mapping[str, Call]:
        return self._buffer.stacks_refs()

    def _finished_draw(self) -> Draw | None:
        drawing = self._buffer.draw_ref() if self._prefetched is None else self._prefetched
        answer = wait_for(drawing, self._pool, tick=self._look, every_s=LOOK_S)
        return None if answer is None else self._buffer.resolve(answer)

    def _look(self) -> None:
        """While a draw is waited for."""
        if self._ending():
            self._buffer.withdraw_draws()
        else:
            self._validate_usable()

    def _hand_over(self, step: int) -> Metrics:
        """The learner's GPUs go to the engines, with the weights of ``step``."""
        self._unpublished = None
        due = self._parity.due(step)
        if due:
            self._parity.score_ahead()
        metrics: Metrics = {
            "time/publish_s": self._timed("publish_s", lambda: self._publish(step)),
            "time/weights_wait_s": self._timed("weights_wait_s", lambda: self._pool.wait_for_version(step)),
        }
        return metrics | (self._parity.check(step) if due else {})

    def _publish(self, version: int) -> None:
        self._group.stage(version)
        if self._config.cluster.colocate:
            self._group.sleep()
            self._pool.use_gpus()
        self._pool.publish()

    def _validate_usable(self) -> None:
        """Raises:
        UserError: many steps' worth of segments were generated and no pair came of them.
        """
        if reason := self._usable.lack(self._buffer.stats()):
            raise UserError(reason)

    def _timed(self, cause: str, action: Callable[[], None]) -> float:
        started = time.monotonic()
        with self._activity.doing(DOING[cause]):
            action()
        return self._add_wait(cause, started)

    def _add_wait(self, cause: str, started: float) -> float:
        seconds = time.monotonic() - started
        self._waited[cause] += seconds
        return seconds
