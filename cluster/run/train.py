"""A run from start to end: its inputs, its folder, and as many attempts as the failure policy allows."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import ray

from cluster.config.run_config import RunConfig
from cluster.reports.run_log import RunLog
from cluster.run.attempt import Setting, run_attempt
from cluster.run.checks import LINES, check_run
from cluster.run.loop import Progress
from cluster.storage.checkpoints import read_manifest
from cluster.storage.run_folder import RunFolder
from cluster.workers.failure_policy import Action, AttemptFailed, FailurePolicy, Limits
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


def train(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Run ``config`` to its last step; returns where policy and EMA were exported.

    Raises:
        UserError: config, data, model, checkpoint or cluster can't be used; one line says which and why.
    """
    run = check_run(config, resume=resume, overwrite=overwrite)
    config, inputs, folder, total_steps = run.config, run.inputs, run.folder, run.total_steps
    with ExitStack() as stack:
        log = RunLog(config.name)
        stack.callback(log.close)
        hardware = stack.enter_context(ray_session(config.cluster, needed_cpus(config)))
        require_room(config, hardware, log.logger)
        validate_nodes(config, hardware)
        # Nothing on disk was touched so far: whatever could be rejected has been.
        folder.prepare()
        if run.checkpoint:
            _rewind(folder, run.first_step)
        log.keep(folder.path / "run.log")
        for line in (inputs.report, inputs.ends, *run.notes):
            log.logger.info(line)
        log.logger.info("%s; %d steps of %d; %s", hardware, total_steps, config.learner.batch_size, folder.path)
        policy = FailurePolicy(Limits())
        setting = Setting(config, folder, inputs, total_steps, hardware, log, policy)
        try:
            closing = _attempts(setting, run.checkpoint, Progress(run.first_step))
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


def _rewind(folder: RunFolder, step: int) -> None:
    """Drop what was logged after a checkpoint's step, as it is written again."""
    for name in LINES:
        folder.keep_lines_below(name, step)
