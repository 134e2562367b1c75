"""Writes a model's responses as AlpacaEval or MT-Bench read them."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal
from uuid import uuid4

from cluster.config.sections import DataConfig
from cluster.data.locations import reject_absent
from cluster.evaluation import mt_bench
from cluster.evaluation.alpaca_eval import Generation, write_generations
from cluster.evaluation.messages import Responses, ResponsesJob
from cluster.evaluation.process import run_job
from cluster.evaluation.questions import Question, read_questions
from contracts.errors import UserError

FileFormat = Literal["alpaca-eval", "mt-bench"]


def write_responses(
    model: str,
    prompts: Path,
    out: Path,
    kind: FileFormat,
    *,
    name: str,
    temperature: float | None,
    max_tokens: int,
    seed: int = 0,
    data: DataConfig | None = None,
) -> int:
    """Answer every prompt once; returns how many were.

    Args:
        model: folder or hub name, with a tokenizer.
        prompts: for ``alpaca-eval`` objects with ``instruction``, ``messages`` or ``prompt``; for ``mt-bench`` its
            questions.
        name: of the model in the file.
        temperature: None: greedy, and for ``mt-bench`` what it has for the category of each question.
        data: how conversations are rendered; None: the defaults.

    Raises:
        UserError: model or prompts can't be used, or the file can't be written.
        RuntimeError: the process with the engine failed otherwise.
    """
    reject_absent(model, "model")
    validate_writable(out)
    if kind == "mt-bench":
        bench = mt_bench.read_questions(prompts)
        texts = _respond(model, [question.asked for question in bench], temperature, max_tokens, seed, data)
        mt_bench.write_answers(out, name, bench, texts, clock=time.time, new_id=lambda: uuid4().hex)
        return len(bench)
    questions = read_questions(prompts)
    texts = _respond(model, questions, temperature, max_tokens, seed, data)
    rows = [Generation(q.dataset, q.text, text, name) for q, (text,) in zip(questions, texts, strict=True)]
    write_generations(out, rows)
    return len(rows)


def dry_writing(
    model: str, prompts: Path, out: Path, kind: FileFormat, *, max_tokens: int, data: DataConfig | None = None
) -> str:
    """What ``write_responses`` would do, in one line; starts no engine.

    Raises:
        UserError: it could not be done.
    """
    from cluster.evaluation.plan import plan_responses

    validate_writable(out)
    if kind == "mt-bench":
        questions = [question.asked for question in mt_bench.read_questions(prompts)]
    else:
        questions = read_questions(prompts)
    plan = plan_responses(model, questions, max_tokens, data)
    turns = sum(1 + len(question.follow_ups) for question in questions)
    return (
        f"model {model}: {len(questions)} prompts, {turns} responses of up to {max(plan.most_tokens)} tokens, as "
        f"{kind} to {out}"
    )


def validate_writable(out: Path) -> None:
    """Before an engine works for nothing.

    Raises:
        UserError: the file is there already, or its folder is not there or not writable.
    """
    if out.is_file():
        raise UserError(f"--out {out}: is there already; give a file that is not")
    if not os.access(out.absolute().parent, os.W_OK) or out.is_dir():
        raise UserError(f"--out {out}: can't be written there; name a file in a folder that exists")


def _respond(
    model: str,
    questions: list[Question],
    temperature: float | None,
    max_tokens: int,
    seed: int,
    data: DataConfig | None,
) -> list[list[str]]:
    if temperature is not None:
        questions = [replace(question, temperature=temperature) for question in questions]
    rendering = data.model_dump(mode="json") if data else None
    answer = run_job(ResponsesJob(model, questions, max_tokens, seed, rendering))
    assert isinstance(answer, Responses)
    return answer.texts
