"""``sapo status``: what a run is doing, on any machine of its cluster."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live

from cluster.cli.ask import Address
from cluster.cli.output import Output
from contracts.errors import UserError

if TYPE_CHECKING:
    from cluster.status.board import Board

EVERY_S = 1.0


def status(
    run: Annotated[str | None, typer.Option(help="Name or folder; default: the run that is going on.")] = None,
    address: Address = None,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it once, as JSON.")] = False,
) -> None:
    """Show what a run is doing: learner, actors, buffer, staleness, who waits for whom, a pair, the last events.

    Works on any machine of the cluster while the run goes on, and on the folder of one that has ended.
    """
    from cluster.config.sections import ClusterConfig
    from cluster.status.read import board_of_folder, boards, live_board, only_run
    from cluster.status.table import render
    from cluster.workers.control import find_control
    from cluster.workers.find_run import find_run
    from cluster.workers.ray_session import ray_session

    found = find_run(run, address)
    once = once or as_json or not sys.stdout.isatty()
    console = Output()

    def show(board: Board, *, live: bool) -> None:
        if as_json:
            print(json.dumps(asdict(board)))
        else:
            console.print(render(board, live=live))

    if found.address is None:
        assert found.folder is not None
        show(board_of_folder(found.folder), live=False)
        return
    with ray_session(ClusterConfig(address=found.address), 0, found.auth):
        name = found.name or only_run(found.address)
        try:
            mailbox = find_control(name)
        except UserError:
            if found.folder is None:
                raise
            show(board_of_folder(found.folder), live=False)
            return
        board = live_board(mailbox, name)
        if once:
            show(board, live=True)
            return
        with Live(render(board, live=True), console=console, auto_refresh=False) as screen:
            for board in boards(name):
                screen.update(render(board, live=True), refresh=True)
                time.sleep(EVERY_S)
        print(f"run {name}: it has ended, or gives no answer")
