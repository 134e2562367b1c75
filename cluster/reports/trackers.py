"""Where a run's metrics go: metrics.jsonl, TensorBoard, Ray's metrics port; services are in services.py."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from cluster.reports.ray_metrics import RayMetrics
from cluster.storage.appended import AppendedFile
from cluster.storage.json_lines import JsonLines
from contracts.errors import first_line

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a disk that may have room again."""

Figures = Mapping[str, float | None]
"""Metrics by name; None where a value was not finite."""


class Tracker(Protocol):
    """One place where metrics go."""

    def log(self, step: int, figures: Figures) -> None:
        """Take in one optimizer step's metrics; ``step`` counts from 1."""

    def close(self) -> None: ...


class JsonLinesTracker:
    """One JSON object a step."""

    def __init__(self, lines: JsonLines) -> None:
        self._lines = lines

    def log(self, step: int, figures: Figures) -> None:
        self._lines.write({"step": step, **figures})

    def close(self) -> None:
        self._lines.close()


class TensorBoardTracker:
    """Scalars, an event file for each attempt of a run."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """``first_step``: steps done before; what an earlier attempt logged after them is not shown."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard shows the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        # Its own writer does so from a thread, which a full disk ends.
        self._records: Any = RecordWriter(AppendedFile(folder / name))
        with suppress(OSError):  # of a full disk: they are written before the first step
            self._write(file_version="brain.Event:2")
        if first_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            with suppress(OSError):
                self._write(step=first_step + 1, session_log=start)

    def log(self, step: int, figures: Figures) -> None:
        values = [self._summary.Value(tag=name, simple_value=v) for name, v in figures.items() if v is not None]
        self._write(step=step, summary=self._summary(value=values))

    def close(self) -> None:
        self._records.close()

    def _write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())


class RayMetricsTracker:
    """Ray's metrics port, for Prometheus."""

    def __init__(self, metrics: RayMetrics) -> None:
        self._metrics = metrics

    def log(self, step: int, figures: Figures) -> None:
        self._metrics.set(figures)

    def close(self) -> None:
        """Ray drops them with the process."""


class Trackers:
    """Hands every step's metrics to all trackers. One that fails is dropped with one line; it never ends a run. One
    whose disk is full stays, as the disk may have room again."""

    def __init__(self, trackers: Sequence[Tracker], log: logging.Logger) -> None:
        self._trackers, self._log = list(trackers), log
        self._waiting: set[Tracker] = set()
        """Those that can't write now."""

    def open(self, name: str, opening: Callable[[], Tracker]) -> None:
        """Add one that may fail to open: a service may be down or want a login."""
        try:
            self._trackers.append(opening())
        except Exception as error:
            self._log.error("logging.trackers %s: it can't be opened and is left out: %s", name, first_line(error))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        figures = finite(metrics)
        for tracker in list(self._trackers):
            try:
                tracker.log(step, figures)
                self._waiting.discard(tracker)
            except Exception as error:  # a tracker is somebody else's service, disk or library
                self._failed(tracker, step, error)

    def _failed(self, tracker: Tracker, step: int, error: Exception) -> None:
        name = type(tracker).__name__
        if not (isinstance(error, OSError) and error.errno in FULL):
            self._trackers.remove(tracker)
            self._log.error("%s failed and is dropped: %s", name, first_line(error))
        elif tracker not in self._waiting:
            self._waiting.add(tracker)
            self._log.error("%s can't write at step %d, and tries again: %s", name, step, first_line(error))

    def close(self) -> None:
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                self._log.error("%s could not be closed: %s", type(tracker).__name__, first_line(error))


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics with None for values that are not finite, which JSON does not know."""
    return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in metrics.items()}
