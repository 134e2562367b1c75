"""The loop of a run: it reads as the algorithm. What hangs on its moments is in callbacks.py."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cluster.run.callbacks import Callbacks, StepResult
from cluster.run.checkpointer import Checkpointer
from cluster.run.evaluations import Evaluations
from cluster.run.held_out import HeldOut
from cluster.run.skips import Skips
from cluster.run.stopping import Stopped, StopRequest
from cluster.sources.base import BatchSource, Metrics
from cluster.workers.inbox import Inbox
from cluster.workers.learner_group import LearnerGroup


@dataclass
class Progress:
    """How far a run is; what follows a failed attempt reads it."""

    step: int
    """Optimizer steps done."""


def run_steps(
    group: LearnerGroup,
    source: BatchSource,
    checkpointer: Checkpointer,
    callbacks: Callbacks,
    held_out: HeldOut,
    evaluations: Evaluations,
    progress: Progress,
    total_steps: int,
    stop: StopRequest,
    inbox: Inbox,
    skips: Skips,
) -> None:
    """Step from ``progress.step`` to ``total_steps``.

    Raises:
        WorkerFailure: too many steps in a row were skipped.
        Stopped: by ``stop`` or ``inbox``; the checkpoint of the last step is whole.
    """
    for step in range(progress.step + 1, total_steps + 1):
        started = time.monotonic()
        batch = source.next(step - 1)
        stepping = time.monotonic()
        done = group.step(batch.pairs)
        train_s = time.monotonic() - stepping
        after = source.stepped(step, batch, done.scores)
        progress.step = step

        metrics = _with_added_times(batch.metrics | done.metrics, after)
        idle_s = metrics.get("time/draw_wait_s", 0.0) + metrics.get("time/weights_wait_s", 0.0)
        metrics |= {"time/train_s": train_s, "time/learner_idle_s": idle_s, "time/step_s": time.monotonic() - started}
        metrics |= held_out.metrics(step) | evaluations.metrics()
        callbacks.on_step(StepResult(step, batch, metrics, done.margins))
        skips.count(step, metrics)
        inbox.poll()
        ending = step == total_steps or bool(stop.signum) or inbox.stop_asked
        if ending or checkpointer.due(step) or inbox.checkpoint_due():
            saved = checkpointer.save(step, last=ending)
            if saved:
                callbacks.on_checkpoint(step, saved)
        if ending and step < total_steps:
            callbacks.on_end(step)
            raise Stopped(step, stop.signum)
    if not total_steps:  # nothing is trained, the starting model is wanted
        checkpointer.save(0, last=True)
    callbacks.on_end(total_steps)


def _with_added_times(metrics: Metrics, later: Metrics) -> Metrics:
    """Seconds of the same name add up; of everything else the later figure counts."""
    added = {n: metrics.get(n, 0.0) + v if n.startswith("time/") else v for n, v in later.items()}
    return metrics | added
