"""What an evaluation and the process with its engine tell each other, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from cluster.evaluation.questions import Question


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
class ResponsesJob:
    """Questions whose responses are wanted."""

    model: str
    questions: list[Question]
    max_tokens: int
    """Longest response."""
    seed: int
    data: dict[str, Any] | None = None
    """As of an ``EvaluationJob``."""


@dataclass(frozen=True)
class TasksJob:
    """Tasks of lm-evaluation-harness that a model is scored on."""

    model: str
    tasks: list[str]
    """Names, and folders of task files."""
    few_shots: int | None
    """None: what each task says."""
    limit: int | None
    """Questions of each task; None: all."""
    chat_template: bool | None
    """None: where the tokenizer has one."""
    seed: int
    responses: str | None
    """File of responses that are scored in place of the model's."""


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


@dataclass(frozen=True)
class Responses:
    """What a model says to questions."""

    texts: list[list[str]]
    """[questions][turns]"""


@dataclass(frozen=True)
class Figure:
    """What a task says of a model."""

    mean: float
    error: float | None
    """Standard error; None where the harness has none."""
    samples: int | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.error is None else f"{self.mean:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class TaskScores:
    """What lm-evaluation-harness says of a model."""

    figures: dict[str, Figure]
    """By ``task/metric``."""
    chat_template: bool
    """Whether questions were turns of a conversation."""
    notes: list[str]
    """What the harness warned of."""


Job = EvaluationJob | ResponsesJob | TasksJob
Answer = Evaluation | Responses | TaskScores | Rejection

_JOB: TypeAdapter[Job] = TypeAdapter(Job)
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


def as_json(record: Job | Answer) -> str:
    """One line."""
    return json.dumps(asdict(record))


def read_job(text: str) -> Job:
    """Raises:
    ValueError: ``text`` is no job.
    """
    return _JOB.validate_json(text)


def read_answer(text: str) -> Answer:
    """Raises:
    ValueError: ``text`` is no answer.
    """
    return _ANSWER.validate_json(text)
