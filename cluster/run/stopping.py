"""SIGTERM and Ctrl-C: the first asks a run to save as soon as it can and to end, the second ends it at once.

Handlers raise ``KeyboardInterrupt``, whatever the signal. A driver is in Ray's calls nearly all the time, and these
hand on that exception alone: any other that a handler raises there is lost, or comes out as an error of Python's
(``check_signals`` in Ray's ``_raylet.pyx``).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from contracts.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ENDS_WITHIN_S = 20.0
"""How long a run may take to end its parts in order when it has saved, or was told to end at once."""


class Interrupted(BaseException):
    """A run was asked to end: before it had anything to save, twice, or for longer than its grace time."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stopped(Exception):
    """A run was asked to end and has saved."""

    def __init__(self, step: int, signum: int = 0) -> None:
        """``signum``: what asked; 0: a person, through the run's mailbox."""
        by = f"by {signal.Signals(signum).name}" if signum else "on request"
        super().__init__(f"stopped at step {step} {by}")
        self.signum, self.step = signum, step


class LastResort:
    """Ends the process where it can't end in order, having saved or not.

    Its Ray may have had the signal too, as all processes of a job have where a scheduler takes a machine away, and
    whoever asks a Ray that is gone for something waits for minutes.
    """

    def __init__(self, limit_s: float = ENDS_WITHIN_S, leave: Callable[[int], object] = os._exit) -> None:
        self._limit_s, self._leave = limit_s, leave
        self._timer: threading.Timer | None = None

    def begin(self, signum: int) -> None:
        """The run has saved, or was told to end at once."""
        if self._timer is None:
            self._timer = threading.Timer(self._limit_s, self._end, [signum])
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """It has ended."""
        if self._timer:
            self._timer.cancel()

    def _end(self, signum: int) -> None:
        name = signal.Signals(signum).name
        print(f"sapo: {name}: not ended in order within {self._limit_s:g} s; it just ends", file=sys.stderr, flush=True)
        self._leave(128 + signum)


@contextmanager
def ended_by_sigterm(last: LastResort) -> Iterator[None]:
    """Within, SIGTERM ends the run as Ctrl-C does, at once and in order: there is nothing to save between attempts.

    Raises:
        Interrupted: it came.
    """

    def end(signum: int, _: FrameType | None) -> None:
        came.append(signum)
        last.begin(signum)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if came:
            raise Interrupted(came[0]) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """Whether the run was asked to end. Handlers are the process's: one at a time, in its main thread."""

    def __init__(self, log: logging.Logger, grace_s: float, last: LastResort) -> None:
        """
        Args:
            grace_s: longest wait for the step and its checkpoint.
            last: begins when it is over.
        """
        self._log, self._grace_s, self._last = log, grace_s, last
        self.signum = 0
        """What asked; 0: nothing has."""

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within, a first signal only sets ``signum``.

        Raises:
            Interrupted: a second one came, or the grace time is over, or a part of the run failed after the first.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (*SIGNALS, signal.SIGALRM)}
        try:
            yield
        except (Exception, KeyboardInterrupt) as failure:
            if self.signum and not isinstance(failure, UserError):
                self._last.begin(self.signum)
                if not isinstance(failure, Stopped):  # whoever asked for the end has no time for another attempt
                    raise Interrupted(self.signum) from failure
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        if self.signum:
            self._last.begin(self.signum)
            raise KeyboardInterrupt
        if signum == signal.SIGALRM:
            return
        self.signum = signum
        name = signal.Signals(signum).name
        self._log.info("%s: saving as soon as the step is done, then ending; once more ends it at once", name)
        signal.setitimer(signal.ITIMER_REAL, self._grace_s)
