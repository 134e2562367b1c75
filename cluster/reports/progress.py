"""The live progress line of a run; plain lines every few seconds where there is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.reports.duration import duration

PLAIN_LINE_EVERY_S = 10.0
PROGRESS = {"progress": True}
"""Marks its lines for those who look for events."""


class ProgressLine:
    """One ``show`` per optimizer step."""

    def __init__(
        self,
        console: Console,
        log: logging.Logger,
        run: str,
        total_steps: int,
        first_step: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``first_step``: optimizer steps that were done before."""
        self._live, self._log, self._clock = console.is_terminal, log, clock
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(run, total=total_steps, completed=first_step, figures="")
        self._total, self._first = total_steps, first_step
        self._first_done = self._last_plain = clock()
        self._tokens = 0.0
        """Trained since the first step was done."""
        if self._live:
            self._progress.start()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """``step`` optimizer steps are done."""
        now, loss, margin = self._clock(), metrics.get("loss"), metrics.get("rewards/margins")
        figures = "loss not finite" if loss is None else f"loss {loss:.4f}"
        figures += "" if margin is None else f"  margin {margin:.4f}"
        left = ""
        # The first step waits for engines to start and kernels to be compiled: no rate follows from it.
        if step == self._first + 1:
            self._first_done = now
        else:
            seconds = max(now - self._first_done, 1e-9)
            rate = (step - self._first - 1) / seconds
            figures += f"  {rate:.1f} steps/s" if rate >= 1 else f"  {1 / rate:.1f} s/step"
            self._tokens += metrics.get("tokens/trained", 0.0)
            figures += f"  {self._tokens / seconds:,.0f} tokens/s" if self._tokens else ""
            left = f"  {duration((self._total - step) / rate)} left"
        if self._live:
            self._progress.update(self._task, completed=step, figures=figures)
        elif now - self._last_plain >= PLAIN_LINE_EVERY_S or step == self._total:
            self._last_plain = now
            self._log.info("%d/%d  %s%s", step, self._total, figures, left, extra=PROGRESS)

    def close(self) -> None:
        if self._live:
            self._progress.stop()
