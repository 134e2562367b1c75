"""A run from start to end: its inputs, its folder, and as many attempts as the failure policy allows."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import ray

from cluster.config.run_config import RunConfig
from cluster.reports.run_log import RunLog
from cluster.run.attempt import Setting, run_attempt
from cluster.run.inputs import count_steps, read_inputs
from cluster.run.loop import Progress
from cluster.storage.checkpoints import read_manifest
from cluster.storage.run_folder import RunFolder
from cluster.workers.failure_policy import Action, AttemptFailed, FailurePolicy, Limits
from cluster.workers.ray_calls import WorkerFailure, failure_of
from cluster.workers.ray_session import ray_session
from cluster.workers.resources import needed_cpus, require_room
from contracts.errors import UserError, first_line

LINES = ("metrics.jsonl", "samples.jsonl")


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its models."""

    folder: Path
    policy: Path
    ema: Path
    steps: int
    bottleneck: str
    """Who waited for whom, in a sentence."""


def train(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Run ``config`` to its last step; returns where policy and EMA were exported.

    Raises:
        UserError: config, data, model, checkpoint or cluster can't be used; one line says which and why.
    """
    inputs = read_inputs(config)
    total_steps = count_steps(config, inputs)
    folder = RunFolder(config, resume=resume, overwrite=overwrite)
    checkpoint = folder.newest_checkpoint() if resume else None
    first_step = _resumed_at(folder, checkpoint, total_steps) if resume else 0
    with ExitStack() as stack:
        log = RunLog(config.name)
        stack.callback(log.close)
        hardware = stack.enter_context(ray_session(config.cluster, needed_cpus(config)))
        require_room(config, hardware, log.logger)
        # Nothing on disk was touched so far: whatever could be rejected has been.
        folder.prepare()
        if checkpoint:
            _rewind(folder, first_step)
        log.keep(folder.path / "run.log")
        for line in inputs.report:
            log.logger.info(line)
        log.logger.info(inputs.ends)
        log.logger.info("%s; %d steps of %d; %s", hardware, total_steps, config.learner.batch_size, folder.path)
        policy = FailurePolicy(Limits())
        setting = Setting(config, folder, inputs, total_steps, hardware, log, policy)
        try:
            closing = _attempts(setting, checkpoint, Progress(first_step))
        except BaseException as error:  # for the file alone: the command line prints its own line
            log.logger.debug("the run ended: %s", first_line(error), exc_info=error)
            raise
    final = folder.checkpoint(total_steps)
    return RunResult(folder.path, final / "policy", final / "ema", total_steps, closing)


def _attempts(setting: Setting, checkpoint: Path | None, progress: Progress) -> str:
    """Attempts until one reaches the last step; returns its closing bottleneck report."""
    while True:
        try:
            return run_attempt(setting, checkpoint, progress)
        except (WorkerFailure, ray.exceptions.RayError) as error:
            # The buffer's client lives below the rim and hands on Ray's own errors.
            failure = error if isinstance(error, WorkerFailure) else failure_of(error)
            if isinstance(failure, UserError):
                raise failure from error
            setting.log.logger.debug("attempt failed", exc_info=error)
            checkpoint = _after(setting, failure, progress)


def _after(setting: Setting, failure: WorkerFailure, progress: Progress) -> Path:
    """Set ``progress`` back to the newest checkpoint and return it.

    Raises:
        UserError: the failure policy ends the run.
    """
    checkpoint = setting.folder.newest_checkpoint()
    event = AttemptFailed(failure.reason, failure.died, progress.step, resumable=checkpoint is not None)
    decision = setting.policy.decide(event)
    if decision.action is Action.RAISE or checkpoint is None:
        assert decision.error is not None
        raise decision.error from failure
    setting.log.logger.warning(
        "a part of the run died at step %d (%s); it goes on from %s", progress.step, failure.reason, checkpoint.name
    )
    progress.step = read_manifest(checkpoint).step
    _rewind(setting.folder, progress.step)
    return checkpoint


def _resumed_at(folder: RunFolder, checkpoint: Path | None, total_steps: int) -> int:
    """The checkpoint's step.

    Raises:
        UserError: it can't be resumed from.
    """
    if checkpoint is None:
        raise UserError(f"{folder.path}: --resume, but it holds no whole checkpoint")
    step = read_manifest(checkpoint).step
    if step >= total_steps:
        raise UserError(f"{checkpoint}: the run is complete at step {step}; raise learner.steps to go on")
    for name in LINES:
        folder.validate_lines(name)
    return step


def _rewind(folder: RunFolder, step: int) -> None:
    """Drop what was logged after a checkpoint's step, as it is written again."""
    for name in LINES:
        folder.keep_lines_below(name, step)
