"""What a run says to its operator: on the terminal, above the progress line, and in the run folder's run.log."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class RunLog:
    """A logger of the run's own with two ends: the terminal gets one line an event, the file also debug lines and
    tracebacks."""

    def __init__(self, name: str) -> None:
        self.console = Console(stderr=True)
        self.logger = logging.getLogger(f"sapo.run.{name}.{id(self)}")
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        self.logger.addHandler(_Terminal(self.console, name))

    def keep(self, file: Path) -> None:
        """Append every line to ``file`` too, from now on."""
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter(FORMAT))
        self.logger.addHandler(handler)

    def close(self) -> None:
        for handler in list(self.logger.handlers):
            self.logger.removeHandler(handler)
            handler.close()


class _Terminal(logging.Handler):
    """One line that does not break the progress line."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(logging.INFO)
        self._console, self._name = console, name

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(f"{self._name}: {record.getMessage()}", highlight=False, soft_wrap=True, markup=False)
