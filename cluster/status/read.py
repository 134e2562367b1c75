"""A run's board, from its mailbox while it goes on, from its folder otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.reports.page.run_record import RunRecord, read_run
from cluster.reports.trackers import Figures
from cluster.status.board import Board, EventLine
from cluster.status.recent import STEPS, learner_idle, seconds_of
from cluster.workers.control import OPEN_AGAIN_S, answer_of, find_control, going_on
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError

if TYPE_CHECKING:
    from cluster.workers.ray_calls import Worker

FIRST_BOARD_S = 10.0
"""Longest wait for the first board of a run that has just begun."""
SHOWN_EVENTS = 8
ENDED = "ended"


def only_run(address: str) -> str:
    """Name of the run that goes on at the connected cluster.

    Raises:
        UserError: there is none, or there are several.
    """
    names = going_on()
    if len(names) == 1:
        return names[0]
    if not names:
        raise UserError(f"cluster.address {address}: no run is going on there; --run FOLDER shows one that has ended")
    raise UserError(f"--run: several are going on at {address}: {', '.join(names)}; name one")


def live_board(mailbox: Worker, run: str) -> Board:
    """
    Raises:
        UserError: the run ended, or its driver has posted nothing yet.
    """
    limit = time.monotonic() + FIRST_BOARD_S
    while True:
        try:
            board: Board | None = answer_of(mailbox.call("board"), FIRST_BOARD_S)
        except WorkerFailure as failure:
            raise UserError(f"run {run}: its mailbox cannot be reached: {failure.reason}") from failure
        if board is not None:
            return board
        if time.monotonic() > limit:
            raise UserError(f"run {run}: its driver has said nothing for {FIRST_BOARD_S:.0f} s")
        time.sleep(0.5)


def boards(run: str) -> Iterator[Board]:
    """One after the other as fast as they are asked for, until the run has ended; a mailbox that dies is opened
    again."""
    seen = time.monotonic()
    mailbox: Worker | None = None
    while time.monotonic() - seen < OPEN_AGAIN_S:
        try:
            mailbox = mailbox or find_control(run)
            board = live_board(mailbox, run)
        except UserError:
            mailbox = None
            time.sleep(1.0)
            continue
        yield board
        seen = time.monotonic()


def board_of_folder(folder: Path) -> Board:
    """What a run left in its folder.

    Raises:
        UserError: it is no run folder, has no steps, or is damaged.
    """
    run = read_run(folder)
    steps = _last_steps(run)
    seconds = seconds_of(steps, "time/step_s")
    last = next((event for event in reversed(run.events) if event.kind != "phase"), None)
    written = last.time if last else (folder / "metrics.jsonl").stat().st_mtime
    said = [line.text for line in run.log if line.text.startswith(("learner idle", "learner busy"))]
    return Board(
        run=run.name,
        folder=str(folder.absolute()),
        host="",
        method=str(run.flat_config.get("method", "")),
        step=int(run.steps[-1]),
        total_steps=int(run.flat_config.get("learner.steps") or 0),
        doing=last.kind if last else ENDED,
        since=written,
        written=written,
        step_s=seconds / len(steps) if seconds else None,
        tokens_per_s=seconds_of(steps, "tokens/trained") / seconds if seconds else 0.0,
        learner_idle=learner_idle(steps),
        bottleneck=said[-1] if said else "",
        metrics=dict(steps[-1]),
        events=tuple(EventLine(_seconds(line.time), line.level, line.text) for line in run.log[-SHOWN_EVENTS:]),
        sample=run.samples[-1] if run.samples else None,
    )


def _last_steps(run: RunRecord) -> list[Figures]:
    def at(position: int) -> Figures:
        values = {name: float(column[position]) for name, column in run.columns.items()}
        return {name: value for name, value in values.items() if np.isfinite(value)}

    count = len(run.steps)
    return [at(position) for position in range(max(0, count - STEPS), count)]


def _seconds(local: str) -> float:
    return datetime.strptime(local, "%Y-%m-%d %H:%M:%S").astimezone().timestamp()
