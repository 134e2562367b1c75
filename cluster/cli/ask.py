"""``sapo actors``, ``checkpoint``, ``stop``: what is asked of a run that is going on."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.config.sections import ClusterConfig
from contracts.errors import UserError

Run = Annotated[str, typer.Option(help="Name or folder of the run.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster; default: RAY_ADDRESS, else that of a run on this machine.")
]


def actors(
    change: Annotated[int, typer.Argument(help="Actors to add; negative: to let go.")],
    run: Run,
    address: Address = None,
) -> None:
    """Add generation actors to a run that is going on, or let some go."""
    from cluster.workers.control import Request, ask

    if not change:
        raise UserError("change 0: give the number of actors to add, or a negative one to let go")
    ask(run, Request("actors", change), ClusterConfig(address=address))
    print(f"asked run {run} for {change:+d} actor(s)")


def checkpoint(run: Run, address: Address = None) -> None:
    """Let a run that is going on write a checkpoint after its current step."""
    from cluster.workers.control import Request, ask

    ask(run, Request("checkpoint"), ClusterConfig(address=address))
    print(f"asked run {run} for a checkpoint after its current step")


def stop(run: Run, address: Address = None) -> None:
    """Let a run that is going on save as soon as it can and end; `sapo train --resume` goes on with it."""
    from cluster.workers.control import Request, ask

    ask(run, Request("stop"), ClusterConfig(address=address))
    print(f"asked run {run} to save as soon as it can and end")
