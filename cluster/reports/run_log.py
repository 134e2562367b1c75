"""What a run says to its operator: on the terminal, above the progress line, and in the run folder's run.log."""

from __future__ import annotations

import logging
import sys
from collections import deque
from pathlib import Path

from rich.console import Console

from cluster.reports.activity import Activity
from cluster.storage.json_lines import JsonLines

FORMAT = "%(asctime)s %(levelname)s %(message)s"
NEWEST = 8
"""Lines that are kept for who looks."""
KNOWN = {*vars(logging.makeLogRecord({})), "message", "asctime"}
"""What every record has; the rest an event brought along."""


class RunLog:
    """A logger of the run's own with three ends: the terminal gets one line an event, run.log also debug lines and
    tracebacks, events.jsonl what a program may want to read."""

    def __init__(self, name: str) -> None:
        self.console = Console(stderr=True, emoji=False)
        self.logger = logging.getLogger(f"sapo.run.{name}.{id(self)}")
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        self.logger.addHandler(_Terminal(self.console, name))
        self._early = _Early()
        self.logger.addHandler(self._early)
        newest = _Newest()
        self.logger.addHandler(newest)
        self.newest = newest.records
        """The last lines that an operator would read."""
        self.activity = Activity(self.logger, self.console)

    def keep(self, folder: Path) -> None:
        """Append every line to ``folder``/run.log too, also those that came before, and events to events.jsonl."""
        self.logger.removeHandler(self._early)
        for handler in (_File(folder / "run.log", self.console), _Events(folder / "events.jsonl", self.console)):
            for record in self._early.records:
                handler.handle(record)
            self.logger.addHandler(handler)
        self._early.records.clear()

    def close(self) -> None:
        for handler in list(self.logger.handlers):
            self.logger.removeHandler(handler)
            handler.close()


class _Early(logging.Handler):
    """What is said before there is a folder: a run that is rejected makes none."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _Newest(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: deque[logging.LogRecord] = deque(maxlen=NEWEST)

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "progress", False):
            self.records.append(record)


class _ToDisk(logging.Handler):
    """Says once that it can't write, as with a full disk, and lets the run go on."""

    console: Console
    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            self.failed = True
            self.console.print(f"run.log and events.jsonl lose lines: {sys.exception()}", highlight=False, markup=False)


class _File(_ToDisk, logging.FileHandler):
    def __init__(self, file: Path, console: Console) -> None:
        super().__init__(file, encoding="utf-8")
        self.console = console
        self.setFormatter(logging.Formatter(FORMAT))


class _Events(_ToDisk):
    """A JSON object for each record that was logged with ``extra={"event": KIND, …}``."""

    def __init__(self, file: Path, console: Console) -> None:
        super().__init__(logging.DEBUG)
        self.console = console
        self._lines = JsonLines(file)

    def emit(self, record: logging.LogRecord) -> None:
        kind = getattr(record, "event", None)
        if kind is None:
            return
        more = {key: value for key, value in vars(record).items() if key not in KNOWN and key != "event"}
        try:
            self._lines.write({"time": record.created, "event": kind, "message": record.getMessage()} | more)
        except (OSError, ValueError, TypeError):
            self.handleError(record)

    def close(self) -> None:
        self._lines.close()
        super().close()


class _Terminal(logging.Handler):
    """One line that does not break the progress line."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(logging.INFO)
        self._console, self._name = console, name

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(f"{self._name}: {record.getMessage()}", highlight=False, soft_wrap=True, markup=False)
