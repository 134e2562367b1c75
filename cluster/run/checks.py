"""Everything about a run that can be rejected before a process is started or a file is written.

``sapo train`` begins with it, ``--dry-run`` ends with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.plan import SHORT_MARGIN
from buffer.snapshot import readable_state
from cluster.config.paths import resolve_paths
from cluster.config.run_config import RunConfig
from cluster.run.inputs import Inputs, count_steps, read_inputs
from cluster.run.model_check import check_config, check_inputs, check_shell
from cluster.storage.checkpoints import read_manifest
from cluster.storage.run_folder import RunFolder
from contracts.errors import UserError
from learner.loss.objectives import resolve_objective
from learner.zero.checkpoint import validate_layout
from learner.zero.optim import effective_zero_stage, total_steps_note

MANY = 0.5
"""Share of responses that are rewritten whole above which that is said."""
LINES = ("metrics.jsonl", "samples.jsonl")


@dataclass(frozen=True)
class CheckedRun:
    """A run that nothing on this machine speaks against."""

    config: RunConfig
    """With absolute paths."""
    inputs: Inputs
    total_steps: int
    folder: RunFolder
    checkpoint: Path | None
    """Where it goes on from."""
    first_step: int
    """Optimizer steps that are done there."""
    notes: tuple[str, ...]
    """What is left out or changed, for the log."""


def check_run(config: RunConfig, *, resume: bool, overwrite: bool) -> CheckedRun:
    """Check ``config`` against data, tokenizer, model, objective, run folder and checkpoint.

    Raises:
        UserError: one of them can't be used.
    """
    config = resolve_paths(config)
    folder = RunFolder(config, resume=resume, overwrite=overwrite)
    folder.validate_writable()
    checkpoint = folder.newest_checkpoint() if resume else None
    _validate_objective(config)
    inputs, notes = _model_and_inputs(config)
    total_steps = count_steps(config, inputs)
    first_step = 0
    if resume:
        first_step, more = _resumed_at(config, folder, checkpoint, total_steps)
        notes += more
    return CheckedRun(config, inputs, total_steps, folder, checkpoint, first_step, tuple(notes))


def check_generation(config: RunConfig, out: Path) -> tuple[RunConfig, Inputs, tuple[str, ...]]:
    """Check what ``sapo generate`` needs; returns the config with absolute paths, its inputs and lines for the log.

    Raises:
        UserError: the config is not of method sapo, or something can't be used.
    """
    if config.method != "sapo":
        raise UserError(f"method {config.method}: only method sapo generates pairs")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: {out.absolute().parent} is no folder")
    config = resolve_paths(config)
    inputs, notes = _model_and_inputs(config)
    return config, inputs, tuple(notes)


def _model_and_inputs(config: RunConfig) -> tuple[Inputs, list[str]]:
    """The run's inputs, and lines for the log. The model comes first: it takes seconds, the data may take minutes."""
    shell, notes = check_shell(config, check_config(config.model))
    inputs = read_inputs(config)
    return inputs, [*notes, *check_inputs(config, shell, inputs), *_on_segments(config, inputs)]


def _validate_objective(config: RunConfig) -> None:
    """As every rank does when it starts."""
    objective = resolve_objective(config.objective)
    if objective.needs_reference and config.reference.mode == "none":
        name = config.objective.name
        raise UserError(f"reference.mode none: objective {name} needs one: initial, ema or policy")


def _on_segments(config: RunConfig, inputs: Inputs) -> list[str]:
    """Responses that are too short to be cut, where most are: the run is another method's then."""
    length = config.generation.segment_length
    if config.method != "sapo" or length is None:
        return []
    lengths = inputs.table.response_lengths
    whole = int((lengths < length + SHORT_MARGIN).sum())
    if whole <= len(lengths) * MANY:
        return []
    return [
        f"generation.segment_length {length}: {whole} of {len(lengths)} responses have under {length + SHORT_MARGIN} "
        f"tokens, so that they are rewritten whole; the median has {int(np.median(lengths))}"
    ]


def _resumed_at(
    config: RunConfig, folder: RunFolder, checkpoint: Path | None, total_steps: int
) -> tuple[int, list[str]]:
    """The checkpoint's step, and what is to be said of it.

    Raises:
        UserError: it can't be resumed from.
    """
    if checkpoint is None:
        raise UserError(f"{folder.path}: --resume, but it holds no whole checkpoint")
    manifest = read_manifest(checkpoint)
    if manifest.step >= total_steps:
        raise UserError(f"{checkpoint}: the run is complete at step {manifest.step}; raise learner.steps to go on")
    for name in LINES:
        folder.validate_lines(name)
    layout: dict[str, int | str] = {
        "learner.ranks": config.learner.ranks,
        "learner.zero_stage": effective_zero_stage(config.model, config.learner),
        "optimizer.name": config.optimizer.name,
    }
    validate_layout(checkpoint / "learner", config.learner.ranks, layout)
    if config.method == "sapo":
        readable_state(checkpoint / "buffer", config.buffer.capacity)
    note = total_steps_note(config.optimizer, manifest.step, manifest.total_steps, total_steps)
    return manifest.step, [note] if note else []
