"""Evaluates a model on prompts by a check."""

from __future__ import annotations

from pathlib import Path

from cluster.config.sections import DataConfig
from cluster.data.locations import reject_absent
from cluster.evaluation.messages import Evaluation, EvaluationJob
from cluster.evaluation.process import run_job
from cluster.evaluation.questions import read_questions
from contracts.imports import import_function


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
    answer = run_job(job)
    assert isinstance(answer, Evaluation)
    return answer
