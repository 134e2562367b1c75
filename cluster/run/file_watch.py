"""Says when the run folder's file system does not answer: the driver's call into it raises nothing and does not end.

What ranks and shards write has deadlines (checkpointer.py). A call of the driver itself can only be waited for, as
where a server of network files is restarted: the run goes on when it returns, and its operator has to know.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

from rich.console import Console

from cluster.reports.activity import Activity

FILES = "write the run's files"
"""The driver's activity meanwhile."""
PACKAGES = ("actors", "buffer", "cluster", "contracts", "learner")
"""This program's."""
LOOKS = 4
"""How often in the time after which something is said."""


class FileWatch:
    """A thread beside the driver's, from ``start`` to ``close``."""

    def __init__(
        self,
        activity: Activity,
        console: Console,
        log: logging.Logger,
        name: str,
        limit_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            name: of the run.
            limit_s: after so many seconds in its files something is said, and as often again.
            clock: of ``activity``.
        """
        self._activity, self._console, self._log, self._name = activity, console, log, name
        self._limit_s, self._clock = limit_s, clock
        self._said_at = 0.0
        self._over = threading.Event()
        self._watched = threading.main_thread().ident

    def start(self) -> None:
        threading.Thread(target=self._run, name="file watch", daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def look(self) -> None:
        """Say it if it is time to."""
        now, doing = self._clock(), self._activity.now
        if doing.what != FILES or now - max(doing.since, self._said_at) < self._limit_s:
            return
        self._said_at = now
        frame = sys._current_frames().get(self._watched) if self._watched else None
        # The terminal first, and not by the logger: its files are in that folder too.
        self._console.print(
            f"{self._name}: the run folder does not answer since {now - doing.since:.0f} s ({_where(frame)}); the run "
            "waits for it",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        self._log.debug("the driver is stuck in its files:\n%s", stack, extra={"event": "files stuck"})

    def _run(self) -> None:
        while not self._over.wait(self._limit_s / LOOKS):
            self.look()


def _where(frame: FrameType | None) -> str:
    """The innermost call of this program's own."""
    while frame:
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] in PACKAGES:
            return f"{module}, {frame.f_code.co_name}"
        frame = frame.f_back
    return "the driver"
