"""Reads what a run left in its folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.storage.environment import FILE as ENVIRONMENT
from cluster.storage.json_lines import read_objects
from cluster.storage.run_folder import saved_values
from contracts.errors import UserError, first_line

Series = NDArray[np.float64]
"""float64 [steps]; NaN where a step lacks the metric or its value was not finite."""
LOG_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (INFO|WARNING|ERROR) (.*)$")
PROGRESS = re.compile(r"^\d+/\d+  ")
"""Begins the plain lines of the progress line."""


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl."""

    time: float
    """Seconds since the epoch."""
    kind: str
    message: str
    details: dict[str, Any]
    """What else the event brought along, such as ``step``."""


@dataclass(frozen=True)
class LogLine:
    """One line of run.log that an operator would read."""

    time: str
    level: str
    text: str


@dataclass(frozen=True)
class RunRecord:
    """A run folder, read."""

    path: Path
    steps: NDArray[np.int64]
    """int64 [steps]: optimizer steps with metrics, in the order of the file."""
    columns: dict[str, Series]
    """Metrics by name."""
    samples: list[dict[str, Any]]
    """Pairs of samples.jsonl."""
    events: list[Event]
    """Empty for a run of a version that wrote none."""
    log: list[LogLine]
    """run.log without debug lines, tracebacks and progress."""
    config: dict[str, Any]
    """The resolved config, as nested sections."""
    environment: dict[str, Any]
    """Empty for a run of a version that wrote none."""

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.path.name)

    @cached_property
    def flat_config(self) -> dict[str, Any]:
        """The config by dotted key."""
        return flatten(self.config)

    def column(self, name: str) -> Series:
        """A metric over all steps; all NaN where the run has none."""
        return self.columns.get(name, np.full(len(self.steps), np.nan))

    @property
    def batch_size(self) -> int:
        """Pairs per step; 0 where the config does not say."""
        return int(self.flat_config.get("learner.batch_size") or 0)


def read_run(folder: Path) -> RunRecord:
    """Read a run folder, of this version or an earlier one, finished or still running.

    Raises:
        UserError: it is no run folder, has no steps yet, or a file of it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; give one that `sapo train` made, such as runs/NAME")
    metrics = read_objects(folder / "metrics.jsonl", "step")
    if not metrics:
        missing = "is empty" if (folder / "metrics.jsonl").exists() else "is missing"
        raise UserError(f"{folder / 'metrics.jsonl'}: {missing}: no step of the run is done, or it is no run folder")
    steps, columns = _columns(metrics, folder / "metrics.jsonl")
    columns |= _evaluations(folder / "evaluations.jsonl", steps)
    return RunRecord(
        path=folder,
        steps=steps,
        columns=columns,
        samples=read_objects(folder / "samples.jsonl", "step", "prompt", "chosen", "rejected"),
        events=_events(folder / "events.jsonl"),
        log=_log(folder / "run.log"),
        config=saved_values(folder / "config.yaml"),
        environment=_environment(folder / ENVIRONMENT),
    )


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; an empty section or one of free keys stays a value of its own."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value and key not in ("engine_args", "deepspeed"):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _evaluations(path: Path, steps: NDArray[np.int64]) -> dict[str, Series]:
    """Scores at the steps of their checkpoints. metrics.jsonl has them where they came in, and lacks those that came in
    after the last step."""
    columns: dict[str, Series] = {}
    for line in read_objects(path, "step"):
        for name in ("greedy", "sampled"):
            share = line.get(name)
            if isinstance(share, dict) and isinstance(share.get("mean"), int | float):
                column = columns.setdefault(f"eval/{name}", np.full(len(steps), np.nan))
                column[steps == line["step"]] = share["mean"]
    return columns


def _columns(metrics: list[dict[str, Any]], path: Path) -> tuple[NDArray[np.int64], dict[str, Series]]:
    names = dict.fromkeys(name for line in metrics for name in line if name != "step")
    try:
        steps = np.array([int(line["step"]) for line in metrics], np.int64)
        # None, which stands for what is not finite, becomes NaN.
        columns = {name: np.array([line.get(name) for line in metrics], np.float64) for name in names}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged: a metric is no number: {first_line(error)}") from error
    return steps, columns


def _events(path: Path) -> list[Event]:
    events = []
    for record in read_objects(path, "time", "event", "message"):
        details = {key: value for key, value in record.items() if key not in ("time", "event", "message")}
        try:
            events.append(Event(float(record["time"]), str(record["event"]), str(record["message"]), details))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged: time {record['time']!r} is no number") from error
    return events


def _log(path: Path) -> list[LogLine]:
    if not path.exists():
        return []
    found = (LOG_LINE.match(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [LogLine(*match.groups()) for match in found if match and not PROGRESS.match(match[3])]


def _environment(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged: no JSON object")
    return values
