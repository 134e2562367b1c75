"""Everything about a run that can be rejected before a process is started or a file is written.

``sapo train`` begins with it, ``--dry-run`` ends with it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.messages import Adapters
from actors.plan import SHORT_MARGIN
from buffer.snapshot import readable_state
from cluster.config.paths import resolve_paths
from cluster.config.run_config import RunConfig
from cluster.evaluation.questions import read_questions
from cluster.reports.services import validate_installed
from cluster.run.inputs import Inputs, count_steps, read_inputs
from cluster.run.model_check import check_config, check_inputs, check_shell
from cluster.run.resume_guard import validate_same_data, validate_same_run
from cluster.storage.run_folder import FoundCheckpoint, RunFolder
from cluster.storage.writable import validate_writable
from contracts.errors import UserError
from contracts.imports import import_function
from learner.loss.objectives import resolve_objective
from learner.model.adapters import adapted_layers, validate_applicable
from learner.model.shell import Shell
from learner.zero.checkpoint import validate_optimizer
from learner.zero.optim import total_steps_note

MANY = 0.5
"""Share of responses that are rewritten whole above which that is said."""
LINES = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl", "evaluations.jsonl")


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
    adapters: Adapters | None
    """What is published to the actors, where it is not whole weights."""

    @property
    def complete(self) -> bool:
        """Nothing is left to do: a job of such a run was submitted again (``recovery.auto_resume``)."""
        return self.checkpoint is not None and self.first_step == self.total_steps


def check_run(config: RunConfig, *, resume: bool, overwrite: bool, allow_changes: Collection[str] = ()) -> CheckedRun:
    """Check ``config`` against data, tokenizer, model, objective, run folder and checkpoint.

    Args:
        allow_changes: config keys that may differ from the checkpoint's, beyond those that always may.

    Raises:
        UserError: one of them can't be used.
    """
    config = resolve_paths(config)
    folder = RunFolder(config, resume=resume, overwrite=overwrite)
    folder.validate_writable()
    if allow_changes and not folder.resumed:
        raise UserError("--allow-change: the run starts anew; it goes with --resume")
    _validate_objective(config)
    _validate_evaluation(config)
    validate_installed(config.logging)
    shell, inputs, notes = model_and_inputs(config)
    total_steps = count_steps(config, inputs)
    found = FoundCheckpoint()
    if folder.resumed:
        found = folder.newest_valid_checkpoint()
        notes += _on_checkpoint(config, inputs, folder, found, total_steps, allow_changes)
        if resume and found.step == total_steps:
            raise UserError(f"{found.folder}: the run is complete at step {found.step}; raise learner.steps to go on")
    return CheckedRun(
        config, inputs, total_steps, folder, found.folder, found.step, tuple(notes), _adapters(config, shell)
    )


def check_generation(config: RunConfig, out: Path) -> tuple[RunConfig, Inputs, tuple[str, ...]]:
    """Check what ``sapo generate`` needs; returns the config with absolute paths, its inputs and lines for the log.

    Raises:
        UserError: the config is not of method sapo, or something can't be used.
    """
    if config.method != "sapo":
        raise UserError(f"method {config.method}: only method sapo generates pairs")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: {out.absolute().parent} is no folder")
    validate_writable(out.absolute().parent, f"--out {out}")
    config = resolve_paths(config)
    _, inputs, notes = model_and_inputs(config)
    return config, inputs, tuple(notes)


def model_and_inputs(config: RunConfig) -> tuple[Shell, Inputs, list[str]]:
    """The model's empty shell, the run's inputs, and lines for the log. The model comes first: it takes seconds, the
    data may take minutes."""
    shell, notes = check_shell(config, check_config(config.model))
    inputs = read_inputs(config)
    return shell, inputs, [*notes, *check_inputs(config, shell, inputs), *_on_segments(config, inputs)]


def _adapters(config: RunConfig, shell: Shell) -> Adapters | None:
    """Raises:
    UserError: engines can't apply them.
    """
    lora = config.model.lora
    if lora is None or not config.publishes_adapters:
        return None
    validate_applicable(shell.module)
    return Adapters(lora.rank, adapted_layers(shell.module))


def _validate_objective(config: RunConfig) -> None:
    """As every rank does when it starts."""
    objective = resolve_objective(config.objective)
    if objective.needs_reference and config.reference.mode == "none":
        name = config.objective.name
        raise UserError(f"reference.mode none: objective {name} needs one: initial, ema or policy")


def _validate_evaluation(config: RunConfig) -> None:
    """What needs no model; hours of training come before the first evaluation."""
    evaluation = config.evaluation
    if evaluation.every and evaluation.prompts and evaluation.check:
        import_function(evaluation.check, "evaluation.check")
        read_questions(Path(evaluation.prompts), "evaluation.prompts")


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


def _on_checkpoint(
    config: RunConfig,
    inputs: Inputs,
    folder: RunFolder,
    found: FoundCheckpoint,
    total_steps: int,
    allow_changes: Collection[str],
) -> list[str]:
    """What is to be said of the checkpoint that the run goes on from.

    Raises:
        UserError: it can't be resumed from, or belongs to another run.
    """
    logged = {name: folder.logged_steps(name) for name in LINES}
    if found.folder is None or found.manifest is None:
        return []
    manifest = found.manifest
    changes = validate_same_run(config, found.folder, [key for key in allow_changes if key != "data.path"])
    validate_same_data(manifest.data, inputs.fingerprint, found.folder, config.data.path, allow_changes)
    validate_optimizer(found.folder / "learner", config.optimizer.name)
    if config.method == "sapo":
        readable_state(found.folder / "buffer", config.buffer.capacity)
    if manifest.step > total_steps:
        raise UserError(f"learner.steps {total_steps}: {found.folder} is further; raise it to go on")
    note = total_steps_note(config.optimizer, manifest.step, manifest.total_steps, total_steps)
    damaged = [f"{damage}; an older checkpoint serves" for damage in found.damaged]
    notes = [*(f"resumed with {change}" for change in changes), *([note] if note else [])]
    return [*damaged, *notes, *_on_lost_lines(logged["metrics.jsonl"], manifest.step)]


def _on_lost_lines(logged: set[int], step: int) -> list[str]:
    """A machine that stopped may have lost lines that were not on its disk yet."""
    if not (lost := [at for at in range(1, step + 1) if at not in logged]):
        return []
    return [
        f"metrics.jsonl lacks {len(lost)} of the {step} steps that are done, step {lost[0]} is the first; they are not "
        "made again"
    ]
