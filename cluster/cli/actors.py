"""``sapo actors``: more or fewer generation actors for a run that is going on."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.config.sections import ClusterConfig


def actors(
    change: Annotated[int, typer.Argument(help="Actors to add; negative: to let go.")],
    run: Annotated[str, typer.Option(help="Name of the run.")],
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: RAY_ADDRESS.")] = None,
) -> None:
    """Add generation actors to a run that is going on, or let some go."""
    from cluster.workers.control import change_actors

    change_actors(run, change, ClusterConfig(address=address))
    print(f"asked run {run} for {change:+d} actor(s)")
