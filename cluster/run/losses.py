"""What failures cost a run: the time until it made a step again, and the steps that it makes again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from cluster.run.callbacks import Callback, StepResult

LOST = "run/lost_s"
KEPT = 100_000
"""Steps whose seconds are remembered; no run goes further back."""


class Losses(Callback):
    """One for a run. The time lost is at most that of a checkpoint interval, what it takes until a failure is noticed,
    and a restart."""

    def __init__(
        self,
        log: logging.Logger,
        tell: Callable[[Mapping[str, float]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``tell``: is given the seconds lost so far, as a figure, whenever there are more."""
        self._log, self._tell, self._clock = log, tell, clock
        self._step_s: dict[int, float] = {}
        """Seconds of each step that may have to be made again."""
        self._last = clock()
        """When the last step was done."""
        self._failed = False
        self._again_s = 0.0
        self.total_s = 0.0
        """Seconds lost so far."""
        tell({LOST: 0.0})

    def failed(self, step: int) -> None:
        """An attempt failed, and the next one goes on from ``step``. It may fail before it has made one."""
        self._failed = True
        for done in [done for done in self._step_s if done > step]:
            self._again_s += self._step_s.pop(done)

    def on_step(self, result: StepResult) -> None:
        now = self._clock()
        if self._failed:
            # The first step is part of it, as its kernels and caches are new too.
            waited_s, again_s = now - self._last, self._again_s
            self.total_s += waited_s + again_s
            self._failed, self._again_s = False, 0.0
            self._tell({LOST: self.total_s})
            self._log.info(
                "goes on: step %d came %.1f s after the last one before the failure; to make steps again takes %.1f s; "
                "failures have cost %.0f s so far",
                result.step,
                waited_s,
                again_s,
                self.total_s,
                extra={"event": "recovered", "step": result.step, "restart_s": waited_s, "again_s": again_s},
            )
        self._last = now
        self._step_s[result.step] = result.metrics.get("time/step_s", 0.0)
        self._step_s.pop(result.step - KEPT, None)
