"""What a run's driver is doing and since when; of its start, every phase with its time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from contracts.spans import span

WORTH_A_LINE_S = 0.5
"""A phase that is shorter is for run.log alone."""
STILL_S = (10.0, 60.0)
"""Where there is no terminal: after how many seconds a phase is said to go on, and then how often."""


@dataclass(frozen=True)
class Doing:
    """One stretch of the driver's work."""

    what: str
    since: float
    """Seconds since the epoch."""


class Activity:
    """Entered by whatever takes time. What it is entered within goes on when it is left."""

    def __init__(self, log: logging.Logger, console: Console, clock: Callable[[], float] = time.time) -> None:
        self._log, self._console, self._clock = log, console, clock
        self.now = Doing("start", clock())

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """A stretch of the loop: seen by who asks, and in Ray's timeline."""
        outer = self.now
        self.now = Doing(what, self._clock())
        try:
            with span(what):
                yield
        finally:
            self.now = outer

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """A part of the start: shown while it lasts, and a line with its seconds when it is over."""
        started = self._clock()
        with self._shown(what), self.doing(what):
            yield
        seconds = self._clock() - started
        level = logging.INFO if seconds >= WORTH_A_LINE_S else logging.DEBUG
        self._log.log(
            level, "%s: %.1f s", what, seconds, extra={"event": "phase", "phase": what, "seconds": round(seconds, 3)}
        )

    @contextmanager
    def _shown(self, what: str) -> Iterator[None]:
        if self._console.is_terminal:
            columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
            with Progress(*columns, console=self._console, transient=True) as live:
                live.add_task(what, total=None)
                yield
            return
        over = threading.Event()
        threading.Thread(target=self._say_still, args=(what, over), daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _say_still(self, what: str, over: threading.Event) -> None:
        first, then = STILL_S
        started, wait_s = self._clock(), first
        while not over.wait(wait_s):
            self._log.info("%s: goes on after %.0f s", what, self._clock() - started)
            wait_s = then
