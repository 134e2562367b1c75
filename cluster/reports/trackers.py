"""Writes a run's metrics: metrics.jsonl, TensorBoard, Ray's metrics port, and the live progress line."""

from __future__ import annotations

import math
import time
from typing import Any

from ray.util.metrics import Gauge
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.storage.run_folder import RunFolder

EXPORTED = (
    "loss",
    "rewards/margins",
    "rewards/accuracies",
    "grad_norm",
    "lr",
    "pairs/inserted",
    "pairs/drawn",
    "pairs/identical_fraction",
    "staleness/mean",
    "staleness/max",
    "buffer/size",
    "time/step_s",
    "time/learner_idle_s",
    "tokens/trained",
    "tokens/generated",
    "weights/version",
)
"""Figures that go to Ray's metrics port as ``sapo_<name>``, ``/`` written as ``_``."""

PLAIN_LINE_EVERY_S = 10.0


class MetricsWriter:
    """One ``write`` per optimizer step."""

    def __init__(self, folder: RunFolder, run: str, total_steps: int, first_step: int, *, tensorboard: bool) -> None:
        self._lines = folder.open_lines("metrics.jsonl")
        self._board = _board(folder) if tensorboard else None
        self._gauges = {
            name: Gauge(f"sapo_{name.replace('/', '_')}", description=f"{name} of a SAPO run", tag_keys=("run",))
            for name in EXPORTED
        }
        self._tags = {"run": run}
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task(run, total=total_steps, completed=first_step, figures="")
        self._run, self._total, self._first = run, total_steps, first_step
        self._first_done = self._last_plain = time.monotonic()
        if self._console.is_terminal:
            self._progress.start()

    def write(self, metrics: dict[str, Any]) -> None:
        """Write one step's metrics; values that are not finite become null."""
        clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in metrics.items()}
        self._lines.write(clean)
        step = clean["step"]
        for name, value in clean.items():
            if value is None or name == "step":
                continue
            if self._board:
                self._board.add_scalar(name, value, step)
            if name in self._gauges:
                self._gauges[name].set(value, tags=self._tags)
        self._show(clean)

    def say(self, text: str) -> None:
        """A line for the operator that does not break the progress line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._console.is_terminal:
            self._progress.stop()
        self._lines.close()
        if self._board:
            self._board.close()

    def _show(self, metrics: dict[str, Any]) -> None:
        step, now = metrics["step"], time.monotonic()
        margin = metrics.get("rewards/margins")
        figures = f"loss {metrics['loss']:.4f}" if metrics.get("loss") is not None else "loss not finite"
        figures += f"  margin {margin:.4f}" if margin is not None else ""
        left = ""
        # The first step waits for engines to start and kernels to be compiled: no rate follows from it.
        if step == self._first + 1:
            self._first_done = now
        else:
            rate = (step - self._first - 1) / max(now - self._first_done, 1e-9)
            figures += f"  {rate:.1f} steps/s"
            left = f"  {(self._total - step) / rate:.0f} s left"
        if self._console.is_terminal:
            self._progress.update(self._task, completed=step, figures=figures)
        elif now - self._last_plain >= PLAIN_LINE_EVERY_S or step == self._total:
            self._last_plain = now
            self.say(f"{self._run} {step}/{self._total}  {figures}{left}")


def _board(folder: RunFolder) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder.path / "tensorboard"))
