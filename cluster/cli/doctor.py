"""``sapo doctor``: what this machine lacks for a run, and the remedy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cluster.cli.arguments import Overrides
from cluster.cli.output import Output
from cluster.config.loading import load_config

if TYPE_CHECKING:
    from cluster.config.run_config import RunConfig
    from cluster.doctor.machine import Needs

COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red"}
WIDTH = max(map(len, COLOURS))
SOMETHING_WRONG = 1
"""Exit status."""


def doctor(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run: looks for what it needs.")] = None,
    overrides: Overrides = None,
) -> None:
    """Look at versions, GPUs, Ray, ports, disk, shared memory and compiler. Nothing is started.

    Exit status 1: something is wrong.
    """
    from cluster.doctor.finding import Level
    from cluster.doctor.machine import Needs, gpu_findings, machine_findings
    from cluster.doctor.network import network_findings
    from cluster.doctor.versions import version_findings

    run = load_config(config, overrides or []) if config else None
    needs = _needs(run) if run else Needs()
    findings = [
        *version_findings(),
        *gpu_findings(needs),
        *machine_findings(Path(run.output_dir if run else "runs"), needs),
        *network_findings(run.cluster.address if run else None),
    ]
    output = Output()
    for finding in findings:
        level = finding.level.value
        output.write_line(Text.assemble((level.ljust(WIDTH), COLOURS[level]), f" {finding.subject}: {finding.text}"))
        if finding.remedy:
            output.write_line(f"        → {finding.remedy}")
    bad = sum(finding.level is Level.WRONG for finding in findings)
    print(f"{len(findings)} checks, {bad} wrong")
    if bad:
        sys.exit(SOMETHING_WRONG)


def _needs(run: RunConfig) -> Needs:
    """What a config asks of this machine. Raises UserError where its model can't be read."""
    from cluster.doctor.machine import Needs
    from cluster.planning.memory import checkpoint_bytes, dtype_bytes
    from cluster.planning.model_shape import read_shape
    from cluster.planning.workload import assumed

    shape = read_shape(run.model)
    longest = assumed(run, run.data.max_length / 2, run.data.max_length / 2)
    disk = (run.checkpoint.keep + 1) * checkpoint_bytes(run, shape, longest, run.learner.ranks)
    shared = run.cluster.object_store_bytes
    if run.method == "sapo" and run.weights.backend in ("auto", "shm"):
        shared += 2 * shape.parameters * dtype_bytes(run)  # two staged versions
    gpus = run.learner.ranks
    if run.method == "sapo" and not run.cluster.colocate:
        gpus += run.generation.actors * run.generation.tensor_parallel
    return Needs(int(disk), shared, gpus, known=True)
