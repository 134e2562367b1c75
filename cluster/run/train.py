"""A run from start to end: its inputs, its folder, and as many attempts as the failure policy allows."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from cluster.config.run_config import RunConfig
from cluster.reports.ray_metrics import EventCounts, RayMetrics
from cluster.reports.run_log import RunLog
from cluster.run.attempt import Setting, end_ranks, run_attempt
from cluster.run.checks import LINES, check_run
from cluster.run.file_watch import FileWatch
from cluster.run.loop import Progress
from cluster.run.losses import Losses
from cluster.run.shrinking import fitted, wait_for_ray
from cluster.run.stopping import LastResort, Stopped, ended_by_sigterm
from cluster.storage.environment import write_environment
from cluster.storage.run_folder import RunFolder
from cluster.storage.run_lock import run_lock, say_where
from cluster.workers.control import Mailbox
from cluster.workers.failure_policy import Action, AttemptFailed, FailurePolicy, Limits
from cluster.workers.member import end_all
from cluster.workers.node_paths import validate_nodes
from cluster.workers.ray_calls import WorkerFailure, failure_of
from cluster.workers.ray_session import ray_session
from cluster.workers.resources import needed_cpus, require_room
from contracts.errors import UserError, first_line


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its models."""

    folder: Path
    policy: Path
    ema: Path
    steps: int
    bottleneck: str
    """Who waited for whom, in a sentence."""


def train(
    config: RunConfig, *, resume: bool = False, overwrite: bool = False, allow_changes: Collection[str] = ()
) -> RunResult:
    """Run ``config`` to its last step; returns where policy and EMA were exported.

    Args:
        resume: go on from the run's newest valid checkpoint.
        overwrite: delete a run of the same name.
        allow_changes: config keys that may differ from the checkpoint's, beyond those that always may.

    Raises:
        UserError: config, data, model, checkpoint or cluster can't be used; one line says which and why.
        Stopped: the run was asked to end and has saved.
        Interrupted: it was asked to end at once.
    """
    with ExitStack() as stack:
        last_resort = LastResort()
        stack.callback(last_resort.close)
        log = RunLog(config.name)
        stack.callback(log.close)
        with log.activity.phase("reading model and data"):
            run = check_run(config, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
        config, inputs, folder, total_steps = run.config, run.inputs, run.folder, run.total_steps
        if run.complete:
            log.logger.info("complete at step %d already; %s", total_steps, folder.path)
            return _result(folder, total_steps, "")
        stack.enter_context(run_lock(folder.path))
        folder.validate_unchanged()
        with log.activity.phase("connecting to Ray"):
            hardware = stack.enter_context(ray_session(config.cluster, needed_cpus(config)))
        stack.enter_context(ended_by_sigterm(last_resort))  # now: Ray has set a handler of its own
        mailbox = Mailbox(config.name)
        stack.callback(mailbox.close)
        say_where(folder.path, ray.get_runtime_context().gcs_address)
        require_room(config, hardware, log.logger)
        validate_nodes(config, hardware)
        # Nothing of an earlier run was touched so far: whatever could be rejected has been.
        folder.prepare()
        if folder.resumed:
            _rewind(folder, run.first_step)
        log.keep(folder.path)
        files = FileWatch(log.activity, log.console, log.logger, config.name, config.recovery.stall_s)
        stack.callback(files.close)
        files.start()
        write_environment(folder.path, str(hardware))
        for line in (*inputs.report, inputs.ends, *run.notes):
            log.logger.info(line)
        log.logger.info(
            "%s; %d steps of %d; %s",
            hardware,
            total_steps,
            config.learner.batch_size,
            folder.path,
            extra={"event": "started", "step": run.first_step},
        )
        recovery = config.recovery
        limits = Limits(
            replacements=recovery.replacements,
            restarts=recovery.restarts,
            window=recovery.within_steps,
            backoff_s=recovery.backoff_s,
        )
        policy = FailurePolicy(limits, config.inserts_per_step)
        metrics = RayMetrics(config.name)
        losses = Losses(log.logger, metrics.set)
        log.logger.addHandler(EventCounts(metrics))
        setting = Setting(
            config,
            folder,
            inputs,
            total_steps,
            hardware,
            log,
            policy,
            metrics,
            losses,
            mailbox,
            last_resort,
            run.adapters,
        )
        stack.callback(end_all, setting.survivors)
        stack.callback(end_ranks, setting)
        try:
            closing = _attempts(setting, run.checkpoint, Progress(run.first_step))
        except BaseException as error:  # for the files alone: the command line prints its own line
            log.logger.debug("ended: %s", first_line(error), exc_info=error, extra={"event": "ended"})
            raise
        log.logger.debug("complete at step %d", total_steps, extra={"event": "complete", "step": total_steps})
    return _result(folder, total_steps, closing)


def _result(folder: RunFolder, total_steps: int, closing: str) -> RunResult:
    final = folder.checkpoint(total_steps)
    return RunResult(folder.path, final / "policy", final / "ema", total_steps, closing)


def _attempts(setting: Setting, checkpoint: Path | None, progress: Progress) -> str:
    """Attempts until one reaches the last step; returns its closing bottleneck report."""
    attempt = setting
    while True:
        try:
            return run_attempt(attempt, checkpoint, progress)
        except (WorkerFailure, ray.exceptions.RayError) as error:
            # The buffer's client lives below the rim and hands on Ray's own errors.
            failure = error if isinstance(error, WorkerFailure) else failure_of(error)
            if isinstance(failure, UserError):
                raise failure from error
            setting.log.logger.debug("attempt failed", exc_info=error)
            checkpoint = _after(setting, failure, progress)
            if setting.asked.stop and checkpoint:
                raise Stopped(progress.step) from error
            attempt = _on_what_is_left(setting)


def _on_what_is_left(setting: Setting) -> Setting:
    """For the cluster as it is now: engines that are one too many end."""
    wait_for_ray(setting.log.logger)
    generation = setting.config.generation
    wanted = max(1, generation.actors + setting.asked.more_actors)
    resized = {"generation": generation.model_copy(update={"actors": wanted})}
    config = fitted(setting.config.model_copy(update=resized), setting.log.logger, use_gpu=setting.hardware.use_gpu)
    end_all(setting.survivors[config.generation.actors :])
    del setting.survivors[config.generation.actors :]
    return replace(setting, config=config)


def _after(setting: Setting, failure: WorkerFailure, progress: Progress) -> Path | None:
    """Set ``progress`` back to the newest valid checkpoint and return it; to the start if there is none.

    Raises:
        UserError: the failure policy ends the run, or no checkpoint is valid.
    """
    log, reached = setting.log.logger, progress.step
    decision = setting.policy.decide(AttemptFailed(failure.reason, failure.died, reached, failure.broken))
    if decision.action is Action.RAISE:
        assert decision.error is not None
        remedy = "; --resume goes on from the newest checkpoint" if setting.folder.newest_checkpoint() else ""
        raise UserError(f"{decision.error}{remedy}") from failure
    found = setting.folder.newest_valid_checkpoint()
    for damage in found.damaged:
        log.warning("%s; an older checkpoint serves if there is one", damage, extra={"event": "checkpoint damaged"})
    checkpoint, progress.step = found.folder, found.step
    log.warning(
        "a part of the run %s at step %d (%s); it goes on from %s",
        "died" if failure.died else "failed",
        reached,
        failure.reason,
        checkpoint.name if checkpoint else "the start",
        extra={"event": "attempt failed", "reached": reached, "step": progress.step},
    )
    setting.losses.failed(progress.step)
    _rewind(setting.folder, progress.step)
    time.sleep(decision.pause_s)
    return checkpoint


def _rewind(folder: RunFolder, step: int) -> None:
    """Drop what was logged after a checkpoint's step, as it is written again."""
    folder.set_aside_after(step)
    for name in LINES:
        folder.keep_lines_below(name, step)
