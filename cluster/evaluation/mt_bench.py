"""MT-Bench's files: questions of two turns, and a model's answers, as FastChat's ``llm_judge`` reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.data.json_rows import json_rows
from cluster.evaluation.questions import Question
from contracts.errors import UserError

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""By category, as FastChat's ``llm_judge/common.py`` has them (``temperature_config``)."""
OTHER_TEMPERATURE = 0.7


@dataclass(frozen=True)
class BenchQuestion:
    """A line of MT-Bench's ``question.jsonl``."""

    question_id: int | str
    asked: Question


def read_questions(path: Path) -> list[BenchQuestion]:
    """
    Raises:
        UserError: the file can't be read, is empty, or a line is no question.
    """
    found = []
    for number, row in json_rows(path, "--prompts"):
        where = f"{path}:{number}"
        turns, name = row.get("turns"), row.get("question_id")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise UserError(f"--prompts {where}: turns is expected, a list of texts; found the keys {', '.join(row)}")
        if not isinstance(name, int | str):
            raise UserError(f"--prompts {where}: question_id is expected; found the keys {', '.join(row)}")
        temperature = TEMPERATURES.get(str(row.get("category")), OTHER_TEMPERATURE)
        messages: list[dict[str, Any]] = [{"role": "user", "content": turns[0]}]
        found.append(
            BenchQuestion(
                name, Question(where, turns[0], messages, follow_ups=tuple(turns[1:]), temperature=temperature)
            )
        )
    if not found:
        raise UserError(f"--prompts {path}: no question in it")
    return found


def write_answers(
    path: Path,
    model: str,
    questions: Sequence[BenchQuestion],
    texts: Sequence[Sequence[str]],
    *,
    clock: Callable[[], float],
    new_id: Callable[[], str],
) -> None:
    """One line for each question, with one choice.

    Args:
        model: its name in the file.
        texts: [questions][turns]
        clock: seconds since 1970.

    Raises:
        UserError: the file can't be written.
    """
    lines = []
    for question, turns in zip(questions, texts, strict=True):
        choices = [{"index": 0, "turns": list(turns)}]
        answer = {"question_id": question.question_id, "answer_id": new_id(), "model_id": model, "choices": choices}
        lines.append(json.dumps(answer | {"tstamp": clock()}, ensure_ascii=False))
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror}") from error
