"""Evaluates a model on prompts, in a process that this one starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cluster.config.sections import DataConfig
from cluster.data.locations import reject_absent
from cluster.evaluation.messages import Evaluation, EvaluationJob, Rejection, as_json, read_answer
from cluster.evaluation.questions import read_questions
from contracts.errors import UserError
from contracts.imports import import_function

SHOWN_CHARACTERS = 4000
"""How much of the end of a failed process's output is shown."""


def evaluate(
    model: str,
    prompts: Path,
    check: str,
    *,
    samples: int,
    temperature: float,
    max_tokens: int = 256,
    seed: int = 0,
    data: DataConfig | None = None,
) -> Evaluation:
    """Answer every prompt once greedily and ``samples`` times sampled.

    Args:
        model: folder or hub name, with a tokenizer.
        prompts: JSONL with ``messages`` (a last assistant turn is left out) or ``prompt``.
        check: ``module:function`` from (last user message or prompt, response) to a number or bool.
        temperature: of the sampled responses.
        max_tokens: longest response.
        data: how conversations are rendered; the default: as without settings.

    Raises:
        UserError: model, prompts or check can't be used.
        RuntimeError: the process failed otherwise; the end of its output is in the message.
    """
    reject_absent(model, "model")
    import_function(check, "--check")
    read_questions(prompts)
    rendering = data.model_dump(mode="json") if data else None
    job = EvaluationJob(model, str(prompts), check, samples, temperature, max_tokens, seed, rendering)
    # vLLM changes the seed, memory policy and threads of its process: it gets one of its own.
    done = subprocess.run(
        [sys.executable, "-m", "cluster.evaluation.worker"],
        input=as_json(job),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = read_answer(done.stdout.strip().rpartition("\n")[2])  # what libraries print stands above it
    except ValueError as error:
        raise RuntimeError(
            f"evaluation of {model} failed with status {done.returncode}:\n{done.stderr[-SHOWN_CHARACTERS:]}"
        ) from error
    if isinstance(answer, Rejection):
        raise UserError(answer.reason)
    return answer
