"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Runs work, slower or not all of them."""
    WRONG = "wrong"
    """Runs fail."""


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do."""

    subject: str
    level: Level
    text: str
    remedy: str = ""
    """Empty where nothing is to be done."""


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, Level.OK, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    return Finding(subject, Level.WARNING, text, remedy)


def wrong(subject: str, text: str, remedy: str) -> Finding:
    return Finding(subject, Level.WRONG, text, remedy)
