"""Scores a model on prompts with a check of the user's own: greedy and sampled, in an engine of its own process."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.data.rows import json_rows
from cluster.data.table import Unusable, load_tokenizer, prompt_ids, refuse_absent, render
from contracts.errors import UserError
from learner.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Check = Callable[[str, str], float]
"""From (text of the prompt, response) to a score; True and False count as 1 and 0."""


@dataclass(frozen=True)
class Share:
    """A mean with its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Question:
    """One line of the prompts file."""

    where: str
    """file:line"""
    text: str
    """What the check is shown: the last message, or the prompt."""
    messages: list[dict[str, str]] | None
    """The conversation up to the response; None for a plain prompt."""


@dataclass(frozen=True)
class Evaluation:
    """What the check says of one model."""

    greedy: Share
    sampled: Share
    prompts: int
    samples: int


def evaluate(
    model: str, prompts: Path, check: str, *, samples: int, temperature: float, max_tokens: int = 256, seed: int = 0
) -> Evaluation:
    """Answer every prompt once greedily and ``samples`` times sampled.

    Args:
        model: folder or hub name, with a tokenizer.
        prompts: JSONL with ``messages`` (a last assistant turn is left out) or ``prompt``.
        check: ``module:function`` from (last user message or prompt, response) to a number or bool.

    Raises:
        UserError: model, prompts or check can't be used.
    """
    refuse_absent(model, "model")
    load_check(check)
    read_questions(prompts)
    job = {
        "model": model,
        "prompts": str(prompts),
        "check": check,
        "samples": samples,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    # vLLM changes the seed, memory policy and threads of its process: it gets one of its own.
    done = subprocess.run(
        [sys.executable, "-m", "cluster.evaluation.evaluate"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    try:
        answer = json.loads(last[0])
    except json.JSONDecodeError:
        answer = {}
    if "refused" in answer:
        raise UserError(answer["refused"])
    if "greedy" not in answer:
        raise RuntimeError(f"evaluation of {model} failed with status {done.returncode}:\n{done.stderr[-4000:]}")
    return Evaluation(Share(**answer["greedy"]), Share(**answer["sampled"]), answer["prompts"], answer["samples"])


def standard_error(scores: Sequence[Sequence[float]]) -> Share:
    """Mean of all scores; the error is that of the mean over prompts, whose samples are not independent."""
    means = [sum(row) / len(row) for row in scores]
    mean = sum(means) / len(means)
    variance = sum((m - mean) ** 2 for m in means) / max(1, len(means) - 1)
    return Share(mean, math.sqrt(variance / len(means)))


def load_check(path: str) -> Check:
    """The function behind ``module:function``.

    Raises:
        UserError: it can't be imported.
    """
    module, _, name = path.partition(":")
    try:
        check: Check = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--check {path}: {error}; expected an importable module:function") from error
    if not callable(check):
        raise UserError(f"--check {path}: {name} is a {type(check).__name__}, expected a function")
    return check


def read_questions(path: Path) -> list[Question]:
    """The prompts of a JSONL file.

    Raises:
        UserError: there is no such file, no prompt in it, or a line that is none.
    """
    questions = [_question(row, f"{path}:{number}") for number, row in json_rows(path, "--prompts")]
    if not questions:
        raise UserError(f"--prompts {path}: no prompt in it")
    return questions


def _question(row: dict[str, Any], where: str) -> Question:
    if "messages" in row:
        messages = row["messages"]
        well_formed = isinstance(messages, list) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
        if not well_formed:
            raise UserError(f"--prompts {where}: messages must be a list of {{role, content}}, both text")
        asked = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
        if not asked:
            raise UserError(f"--prompts {where}: no message before the response")
        return Question(where, asked[-1]["content"], asked)
    if isinstance(row.get("prompt"), str):
        return Question(where, row["prompt"], None)
    found = "a prompt that is not text" if "prompt" in row else f"the keys {', '.join(row) or '(none)'}"
    raise UserError(f"--prompts {where}: messages, or prompt as text, is expected; found {found}")


def question_ids(question: Question, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids as training has them.

    Raises:
        UserError: the chat template refuses the conversation, or nothing is left of the prompt.
    """
    templated = question.messages is not None
    try:
        text = render(tokenizer, question.messages, add_generation_prompt=True) if question.messages else question.text
    except Unusable as reason:
        raise UserError(f"--prompts {question.where}: {reason}") from reason
    ids = prompt_ids(tokenizer, [text], templated=templated)[0]
    if not ids:
        raise UserError(f"--prompts {question.where}: the prompt is empty")
    return ids


def score(check: Check, path: str, question: Question, response: str) -> float:
    """What the check says of one response.

    Raises:
        UserError: it fails, or returns no number.
    """
    try:
        return float(check(question.text, response))
    except Exception as error:  # the check is the user's own code and may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"--check {path}: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno}), on the prompt of "
            f"{question.where} and the response {response[:80]!r}"
        ) from error


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    from actors.engine_options import cpu_arguments, environment

    path, check = job["check"], load_check(job["check"])
    questions = read_questions(Path(job["prompts"]))
    tokenizer = load_tokenizer(ModelConfig(path=job["model"]))
    ids = [question_ids(question, tokenizer) for question in questions]
    longest = max(map(len, ids))
    import torch

    gpu = torch.cuda.is_available()
    os.environ.update(environment(gpu))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    options = {} if gpu else cpu_arguments(longest + 1)
    try:
        engine = LLM(job["model"], skip_tokenizer_init=True, seed=job["seed"], **options)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"model {job['model']}: vLLM can't load it: {str(error).splitlines()[0]}") from error
    positions = engine.llm_engine.model_config.max_model_len
    if longest >= positions:
        where = questions[max(range(len(ids)), key=lambda i: len(ids[i]))].where
        raise UserError(
            f"--prompts {where}: {longest} tokens; model {job['model']} holds {positions} with the response"
        )
    common: dict[str, Any] = {
        "max_tokens": min(job["max_tokens"], positions - longest),
        "detokenize": False,
        "ignore_eos": True,
        "stop_token_ids": [tokenizer.eos_token_id],
    }
    sampled = {"temperature": job["temperature"], "n": job["samples"], "seed": job["seed"]}

    def share(**how: Any) -> Share:
        outputs = engine.generate(
            [{"prompt_token_ids": i} for i in ids], SamplingParams(**common, **how), use_tqdm=False
        )
        decoded = [
            [str(tokenizer.decode(list(o.token_ids), skip_special_tokens=True)) for o in output.outputs]
            for output in outputs
        ]
        return standard_error(
            [[score(check, path, q, text) for text in texts] for q, texts in zip(questions, decoded, strict=True)]
        )

    greedy, drawn = share(temperature=0.0), share(**sampled)
    return {"greedy": asdict(greedy), "sampled": asdict(drawn), "prompts": len(ids), "samples": job["samples"]}


if __name__ == "__main__":
    try:
        print(json.dumps(_answer(json.load(sys.stdin))))
    except UserError as refusal:
        print(json.dumps({"refused": str(refusal)}))
