"""Scores a model on prompts with a check of the user's own: greedy and sampled, in an engine of its own process."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from buffer.errors import UserError


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
    job = {
        "model": model, "prompts": str(prompts), "check": check, "samples": samples, "temperature": temperature,
        "max_tokens": max_tokens, "seed": seed,
    }  # fmt: skip
    # vLLM changes the seed, memory policy and threads of its process: it gets one of its own.
    done = subprocess.run(
        [sys.executable, "-m", "cluster.evaluate"], input=json.dumps(job), capture_output=True, text=True, check=False
    )
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    try:
        answer = json.loads(last[0])
    except json.JSONDecodeError:
        answer = {}
    if "refused" in answer:
        raise UserError(answer["refused"])
    if "greedy" not in answer:
        raise RuntimeError(f"evaluation of {model} failed:\n{done.stderr[-4000:]}")
    return Evaluation(Share(**answer["greedy"]), Share(**answer["sampled"]), answer["prompts"], answer["samples"])


def standard_error(scores: Sequence[Sequence[float]]) -> Share:
    """Mean of all scores; the error is that of the mean over prompts, whose samples are not independent."""
    means = [sum(row) / len(row) for row in scores]
    mean = sum(means) / len(means)
    variance = sum((m - mean) ** 2 for m in means) / max(1, len(means) - 1)
    return Share(mean, math.sqrt(variance / len(means)))


def load_check(path: str) -> Callable[[str, str], float]:
    """The function behind ``module:function``.

    Raises:
        UserError: it can't be imported.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--check {path}: {error}; expected an importable module:function") from error


def _prompts(path: Path, tokenizer) -> tuple[list[str], list[list[int]]]:
    """(text for the check, token ids) of every prompt."""
    if not path.is_file():
        raise UserError(f"--prompts {path}: no such file")
    texts, ids = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"--prompts {path}:{number}: not JSON: {error.msg}") from error
        if "messages" in row:
            messages = row["messages"][:-1] if row["messages"][-1]["role"] == "assistant" else row["messages"]
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            texts.append(messages[-1]["content"])
            ids.append(tokenizer(rendered, add_special_tokens=False)["input_ids"])
        elif "prompt" in row:
            texts.append(row["prompt"])
            ids.append(tokenizer(row["prompt"])["input_ids"])
        else:
            raise UserError(f"--prompts {path}:{number}: neither messages nor prompt; the keys are {', '.join(row)}")
    if not texts:
        raise UserError(f"--prompts {path}: no prompt in it")
    return texts, ids


def _answer(job: dict) -> dict:
    from actors.engine import CPU_ENVIRONMENT, CPU_KV_CACHE_BYTES, QUIET_ENVIRONMENT
    from cluster.data import load_tokenizer
    from learner.config import ModelConfig

    check = load_check(job["check"])
    tokenizer = load_tokenizer(ModelConfig(path=job["model"]))
    texts, ids = _prompts(Path(job["prompts"]), tokenizer)
    import torch

    gpu = torch.cuda.is_available()
    os.environ.update(QUIET_ENVIRONMENT if gpu else QUIET_ENVIRONMENT | CPU_ENVIRONMENT)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    try:
        # Prefills stay whole on CPU, where a seeded request whose prefill is split crashes the engine.
        length = max(map(len, ids)) + 1
        options = {} if gpu else {"enforce_eager": True, "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
                                  "enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, length)}  # fmt: skip
        engine = LLM(job["model"], skip_tokenizer_init=True, seed=job["seed"], **options)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{job['model']}: vLLM can't load it: {str(error).splitlines()[0]}") from error
    room = engine.llm_engine.model_config.max_model_len - max(map(len, ids))
    common = {
        "max_tokens": max(1, min(job["max_tokens"], room)), "detokenize": False, "ignore_eos": True,
        "stop_token_ids": [tokenizer.eos_token_id],
    }  # fmt: skip
    sampled = {"temperature": job["temperature"], "n": job["samples"], "seed": job["seed"]}

    def scores(**how) -> list[list[float]]:
        parameters = SamplingParams(**common, **how)
        outputs = engine.generate([{"prompt_token_ids": i} for i in ids], parameters, use_tqdm=False)
        return [
            [float(check(text, tokenizer.decode(o.token_ids, skip_special_tokens=True))) for o in output.outputs]
            for text, output in zip(texts, outputs, strict=True)
        ]

    greedy, drawn = standard_error(scores(temperature=0.0)), standard_error(scores(**sampled))
    return {"greedy": asdict(greedy), "sampled": asdict(drawn), "prompts": len(texts), "samples": job["samples"]}


if __name__ == "__main__":
    try:
        print(json.dumps(_answer(json.load(sys.stdin))))
    except UserError as refusal:
        print(json.dumps({"refused": str(refusal)}))
