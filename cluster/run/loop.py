"""The loop of a run: it reads as the algorithm. What hangs on its moments is in callbacks.py."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NoReturn

from cluster.reports.activity import Activity
from cluster.run.callbacks import Callbacks, StepResult
from cluster.run.checkpointer import Checkpointer
from cluster.run.evaluations import Evaluations
from cluster.run.file_watch import FILES
from cluster.run.held_out import HeldOut
from cluster.run.interventions import Interventions
from cluster.run.stopping import Stopped
from cluster.sources.base import BatchSource, Metrics
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
    interventions: Interventions,
    activity: Activity,
) -> None:
    """Step from ``progress.step`` to ``total_steps``.

    Raises:
        WorkerFailure: too many steps in a row were skipped, or a checkpoint does not get on.
        UserError: a checkpoint could not be written, and that ends the run.
        Stopped: the run was asked to end; the checkpoint of its last step is whole.
    """
    for step in range(progress.step + 1, total_steps + 1):
        started = time.monotonic()
        with activity.doing("draw"):
            batch = source.next(step - 1)
        if batch is None:
            _save_and_stop(step - 1, checkpointer, callbacks, interventions, activity)
        stepping = time.monotonic()
        with activity.doing("step"):
            done = group.step(batch.pairs)
        train_s = time.monotonic() - stepping
        after = source.stepped(step, batch, done.scores)
        progress.step = step

        metrics = _with_added_times(batch.metrics | done.metrics, after)
        idle_s = metrics.get("time/draw_wait_s", 0.0) + metrics.get("time/weights_wait_s", 0.0)
        metrics |= {"time/train_s": train_s, "time/learner_idle_s": idle_s, "time/step_s": time.monotonic() - started}
        with activity.doing("evaluate"):
            metrics |= held_out.metrics(step)
        metrics |= evaluations.metrics()
        with activity.doing(FILES):
            callbacks.on_step(StepResult(step, batch, metrics, done.margins))
            checkpointer.poll()
        interventions.look(step, metrics)
        if interventions.ending and step < total_steps:
            _save_and_stop(step, checkpointer, callbacks, interventions, activity)
        if step == total_steps or checkpointer.due(step) or interventions.checkpoint_due():
            with activity.doing("checkpoint"):
                checkpointer.save(step, last=step == total_steps)
    if not total_steps:  # nothing is trained, the starting model is wanted
        checkpointer.save(0, last=True)
    callbacks.on_end(total_steps)


def _save_and_stop(
    step: int, checkpointer: Checkpointer, callbacks: Callbacks, interventions: Interventions, activity: Activity
) -> NoReturn:
    """
    Raises:
        Stopped: always.
    """
    with activity.doing("checkpoint"):
        checkpointer.save(step, last=True)
    callbacks.on_end(step)
    raise Stopped(step, interventions.signum)


def _with_added_times(metrics: Metrics, later: Metrics) -> Metrics:
    """Seconds of the same name add up; of everything else the later figure counts."""
    added = {n: metrics.get(n, 0.0) + v if n.startswith("time/") else v for n, v in later.items()}
    return metrics | added
