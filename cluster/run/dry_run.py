"""``--dry-run``: what a run would be, after everything that can be rejected has had its chance; starts nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.run.checks import check_generation, check_run
from cluster.run.inputs import Inputs
from cluster.workers.resources import Hardware, demands, needed_cpus, require_room, this_machine
from cluster.workers.room import Demand

ROWS = 1000
"""Rows of a dataset that are read: enough to see that its columns and templates are right, in seconds."""


def dry_run(config: RunConfig, *, resume: bool, overwrite: bool, allow_changes: Collection[str] = ()) -> list[str]:
    """Lines that say what ``sapo train`` would do.

    Raises:
        UserError: it could not.
    """
    sampled, whole = _sampled(config, resume=resume or config.recovery.auto_resume)
    run = check_run(sampled, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
    steps = f"{run.total_steps} steps" if whole else f"{config.learner.epochs:g} epochs"
    if run.complete:
        return [f"complete at step {run.total_steps} already; {run.folder.path}"]
    begins = f"goes on at step {run.first_step} of {run.checkpoint}" if run.checkpoint else "starts"
    return [
        f"method {config.method}, objective {config.objective.name}: {steps} of {config.learner.batch_size}; {begins}",
        *_inputs(run.config, run.inputs, run.notes),
        _resources(config, learner=True),
        f"would write {run.folder.path}",
    ]


def dry_generation(config: RunConfig, out: Path, batches: int) -> list[str]:
    """Lines that say what ``sapo generate`` would do.

    Raises:
        UserError: it could not.
    """
    sampled, _ = _sampled(config, resume=False)
    sampled, inputs, notes = check_generation(sampled, out)
    return [
        f"generates {batches} batches of {config.learner.batch_size} pairs with {config.model.path}",
        *_inputs(sampled, inputs, notes),
        _resources(config, learner=False),
        f"would write {out.absolute()}",
    ]


def _sampled(config: RunConfig, *, resume: bool) -> tuple[RunConfig, bool]:
    """The config with the first ``ROWS`` rows of its data, and whether that is all that the number of steps hangs on.
    Of a resumed run all rows are read: they are compared with the checkpoint's."""
    counted = config.learner.steps is not None or config.method == "replay"
    if resume:
        return config, True
    limit = min(config.data.max_rows or ROWS, ROWS)
    data = config.data.model_copy(update={"max_rows": limit})
    return config.model_copy(update={"data": data}), counted or config.data.max_rows == limit


def _inputs(config: RunConfig, inputs: Inputs, notes: tuple[str, ...]) -> list[str]:
    at_most = config.data.max_rows if config.method != "replay" else None
    first = [f"of a dataset the first {at_most} rows at most were read"] if at_most else []
    return [f"model {config.model.path}, {config.model.dtype}", *inputs.report, *first, str(inputs.ends), *notes]


def _resources(config: RunConfig, *, learner: bool) -> str:
    if address := config.cluster.address or os.environ.get("RAY_ADDRESS"):
        needs = _needs(*demands(config, use_gpu=False, learner=learner)) + _beside(config)
        return f"needs {needs}; counted on the cluster at {address}"
    hardware: Hardware = this_machine(config)
    require_room(config, hardware, logging.getLogger(__name__), learner=learner)
    ranks, actors = demands(config, use_gpu=hardware.use_gpu, learner=learner)
    here = f"{os.cpu_count()} CPUs, {hardware.gpus:g} GPUs"
    short = "" if needed_cpus(config) <= (os.cpu_count() or 1) else ": they will share cores"
    return f"needs {_needs(ranks, actors)}{_beside(config)}; this machine has {here}{short}"


def _beside(config: RunConfig) -> str:
    return ", and an evaluation actor beside them" if config.evaluation.every else ""


def _needs(*of: Demand) -> str:
    return " and ".join(_need(demand) for demand in of if demand.count) or "nothing"


def _need(demand: Demand) -> str:
    kind = demand.kind.removesuffix("s") if demand.count == 1 else demand.kind
    return f"{demand.count} {kind} with " + ", ".join(f"{amount:g} {name}" for name, amount in demand.bundle.items())
