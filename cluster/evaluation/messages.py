"""What an evaluation and the process with its engine tell each other, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True)
class EvaluationJob:
    """What to evaluate, and how."""

    model: str
    """Folder or hub name."""
    prompts: str
    """JSONL file."""
    check: str
    """``module:function``"""
    samples: int
    """Sampled responses per prompt."""
    temperature: float
    """Of the sampled ones."""
    max_tokens: int
    """Longest response."""
    seed: int
    data: dict[str, Any] | None = None
    """Section ``data`` of a run's configuration, which says how conversations are rendered; None: the defaults."""


@dataclass(frozen=True)
class Share:
    """A mean with its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Evaluation:
    """What the check says of one model."""

    greedy: Share
    sampled: Share
    prompts: int
    samples: int
    """Sampled responses per prompt."""


@dataclass(frozen=True)
class Rejection:
    """Model, prompts or check can't be used."""

    reason: str
    """The line for the user."""


Answer = Evaluation | Rejection

_JOB: TypeAdapter[EvaluationJob] = TypeAdapter(EvaluationJob)
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


def as_json(record: EvaluationJob | Answer) -> str:
    """One line."""
    return json.dumps(asdict(record))


def read_job(text: str) -> EvaluationJob:
    """Raises:
    ValueError: ``text`` is no job.
    """
    return _JOB.validate_json(text)


def read_answer(text: str) -> Answer:
    """Raises:
    ValueError: ``text`` is no answer.
    """
    return _ANSWER.validate_json(text)
