"""Steps whose gradient was not finite: their batches are kept, and too many in a row end an attempt."""

from __future__ import annotations

import logging

from cluster.reports.samples import Decode, readable
from cluster.run.callbacks import Callback, StepResult
from cluster.sources.base import Metrics
from cluster.storage.json_lines import JsonLines
from cluster.workers.ray_calls import WorkerFailure
from learner.messages import SKIPPED


class Skips:
    """Counts them."""

    def __init__(self, most: int) -> None:
        """``most``: how many in a row are let pass."""
        self._most, self._in_a_row = most, 0

    def count(self, step: int, metrics: Metrics) -> None:
        """
        Raises:
            WorkerFailure: it is one too many.
        """
        self._in_a_row = self._in_a_row + 1 if metrics[SKIPPED] else 0
        if self._in_a_row > self._most:
            raise WorkerFailure(
                f"the gradient of {self._in_a_row} steps in a row, the last {step}, is not finite: lower optimizer.lr, "
                "or look at their batches in skipped.jsonl",
                died=False,
            )


class SkippedBatches(Callback):
    """All pairs of a skipped step, readable, in skipped.jsonl."""

    def __init__(self, lines: JsonLines, decode: Decode, log: logging.Logger) -> None:
        self._lines, self._decode, self._log = lines, decode, log

    def on_step(self, result: StepResult) -> None:
        if not result.metrics[SKIPPED]:
            return
        for pair in result.batch.pairs:
            self._lines.write(readable(pair, self._decode, result.step))
        self._log.warning(
            "step %d was skipped: its gradient is not finite; its batch is in skipped.jsonl",
            result.step,
            extra={"event": "step skipped", "step": result.step},
        )
