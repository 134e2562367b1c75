"""Evaluations beside a run: which checkpoints are scored, what becomes of the scores, which checkpoint is the best.

Nothing here waits while the run steps. One evaluation is under way at a time; a checkpoint that is due meanwhile is
skipped and counted. An evaluation that fails, and an evaluation actor that dies or does not answer, are counted and
named, and the next checkpoint gets a new actor. The actor ends with the attempt; its engine ends with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.config.sections import EvaluationConfig
from cluster.evaluation.messages import Evaluation, Share
from cluster.run.callbacks import Callback, StepResult, is_due
from cluster.sources.base import Metrics
from cluster.storage.json_lines import JsonLines
from cluster.storage.run_folder import RunFolder
from cluster.workers.ray_calls import TICK_S, Call, Calls, Worker, WorkerFailure
from contracts.errors import UserError, first_line


class Factory(Protocol):
    """Of evaluation actors; at most one is there at a time."""

    def start(self) -> Worker: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Running:
    """An evaluation under way."""

    step: int
    folder: Path
    call: Call
    since: float


class Evaluations(Callback):
    """Of one attempt."""

    def __init__(
        self,
        config: EvaluationConfig,
        folder: RunFolder,
        lines: JsonLines,
        factory: Factory,
        calls: Calls,
        total_steps: int,
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            lines: evaluations.jsonl.
            total_steps: of the run; the checkpoint of the last one is scored too.
        """
        self._config, self._folder, self._lines, self._factory = config, folder, lines, factory
        self._calls, self._last, self._log, self._clock = calls, total_steps, log, clock
        self._worker: Worker | None = None
        self._running: Running | None = None
        self._skipped = self._failed = self._scored = 0
        self._begun: set[int] = set()
        self._fresh: Metrics = {}

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Have it scored, if it is due and nothing else is being scored."""
        if not self._config.every or not (is_due(step, self._config.every) or step == self._last):
            return
        self._collect()
        if self._running and step == self._last:
            return  # ``finish`` has the time to wait for both
        if self._running:
            self._skipped += 1
            self._fresh["eval/skipped"] = float(self._skipped)
            event = {"event": "evaluation skipped", "step": step}
            self._log.info("step %d is not evaluated: step %d still is", step, self._running.step, extra=event)
            return
        self._begin(step, folder)

    def on_step(self, result: StepResult) -> None:
        self._collect()

    def metrics(self) -> Metrics:
        """``eval/…`` of what has come in since the last call; ``eval/step`` says of which step it is."""
        fresh, self._fresh = self._fresh, {}
        return fresh

    def finish(self) -> None:
        """Wait for what is under way, and for the last checkpoint; learner and actors have ended before."""
        try:
            if self._running:
                self._log.info("the run has ended; the evaluation of step %d goes on", self._running.step)
            self._wait()
            if self._config.every and self._last not in self._begun:
                self._log.info("the run has ended; the evaluation of step %d, the last, begins", self._last)
                self._begin(self._last, self._folder.checkpoint(self._last))
                self._wait()
            if self._failed and not self._scored:
                self._log.warning(
                    "none of %d evaluations came to an end: no figure, and no best checkpoint", self._failed
                )
        except (OSError, UserError) as error:
            self._log.warning("the last evaluation could not be kept: %s", first_line(error))

    def close(self) -> None:
        self._factory.end()
        self._release()
        self._lines.close()

    def _begin(self, step: int, folder: Path) -> None:
        self._worker = self._worker or self._factory.start()
        self._folder.spared.add(folder)
        self._begun.add(step)
        call = self._worker.call("evaluate", str(folder / self._config.weights))
        self._running = Running(step, folder, call, self._clock())

    def _wait(self) -> None:
        while self._running:
            self._calls.first_done([self._running.call], TICK_S)
            self._collect()

    def _collect(self) -> None:
        """Take the evaluation that was under way, if it has come in: write it, log it, compare it with the best."""
        running = self._running
        if running is None:
            return
        if not self._calls.first_done([running.call], 0):
            if self._clock() - running.since > self._config.timeout_s:
                self._fail(running, f"no answer within {self._config.timeout_s:g} s", replace=True)
            return
        try:
            result: Evaluation = self._calls.answer(running.call)
        except WorkerFailure as failure:
            self._fail(running, failure.reason, replace=failure.died)
            return
        except UserError as error:
            self._fail(running, str(error), replace=False)
            return
        self._release()
        self._note(running.step, result)

    def _fail(self, running: Running, reason: str, *, replace: bool) -> None:
        self._failed += 1
        self._fresh["eval/failed"] = float(self._failed)
        self._log.warning(
            "evaluation of step %d failed (%s); failed so far: %d",
            running.step,
            reason,
            self._failed,
            extra={"event": "evaluation failed", "step": running.step},
        )
        if replace:
            self._factory.end()
            self._worker = None
        self._release()

    def _release(self) -> None:
        """Nothing is under way any more; its checkpoint may go, unless it is the best."""
        if self._running:
            self._folder.spared.discard(self._running.folder)
        self._running = None

    def _note(self, step: int, result: Evaluation) -> None:
        self._scored += 1
        figures = {"greedy": result.greedy, "sampled": result.sampled}
        self._fresh["eval/step"] = float(step)
        for name, share in figures.items():
            self._fresh |= {f"eval/{name}": share.mean, f"eval/{name}_error": share.error}
        record = {name: {"mean": share.mean, "error": share.error} for name, share in figures.items()}
        self._lines.write({"step": step, "weights": self._config.weights, **record, "prompts": result.prompts})
        best = self._keep_if_best(step, figures)
        self._log.info(
            "evaluation of step %d: greedy %s, sampled %s%s",
            step,
            result.greedy,
            result.sampled,
            best,
            extra={"event": "evaluation", "step": step},
        )

    def _keep_if_best(self, step: int, figures: dict[str, Share]) -> str:
        """Equal figures leave the older checkpoint the best. Returns what there is to say of it."""
        name = self._config.keep_best
        if name is None:
            return ""
        best = self._folder.best()
        if best and best.figure == name and best.mean >= figures[name].mean:
            return f"; the best is step {best.step} with {name} {best.mean:.3f}"
        self._folder.keep_best(step, name, figures[name].mean)
        return f"; the best so far by {name}, kept"
