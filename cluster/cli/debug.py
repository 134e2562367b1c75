"""``sapo debug``: a run's loop in one process, to be stepped through."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.arguments import ConfigFile, Overrides
from cluster.config.loading import load_config
from contracts.errors import UserError


def debug(
    config: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps to make.")] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option("--break", metavar="PHASE", help="Enter the debugger after write, draw, step or publish."),
    ] = None,
) -> None:
    """Run CONFIG's loop in this process and print each phase: the pairs, how they are packed, the loss.

    One rank, one actor, lockstep, no Ray, nothing written to disk. `breakpoint()` works in learner and actor code, in
    an objective of yours, anywhere.
    """
    from cluster.debugging.stops import PHASES

    phases = [phase for phase in PHASES if phase in (stop or [])]
    if unknown := set(stop or []) - set(PHASES):
        raise UserError(f"--break {sorted(unknown)[0]}: no such phase; one of {', '.join(PHASES)}")
    from cluster.config.paths import resolve_paths
    from cluster.debugging.session import ALONE
    from cluster.debugging.session import debug as run
    from cluster.run.checks import model_and_inputs
    from cluster.run.inputs import count_steps

    alone = resolve_paths(load_config(config, [*(overrides or []), *ALONE]))
    _, inputs, notes = model_and_inputs(alone)
    for line in (*inputs.report, *notes):
        print(line)
    run(alone, inputs, count_steps(alone, inputs), steps, phases)
