"""The process with the engine: ``python -m cluster.evaluation.worker`` reads a job from stdin, prints its answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.data.ends import read_ends
from cluster.data.tokenizer import load_tokenizer
from cluster.data.tokens import Tokenisation
from cluster.evaluation.checks import mean_score, score
from cluster.evaluation.messages import Evaluation, EvaluationJob, Rejection, Share, as_json, read_job
from cluster.evaluation.questions import question_ids, read_questions
from contracts.errors import UserError, first_line
from contracts.imports import import_function
from learner.config import ModelConfig

if TYPE_CHECKING:
    from vllm import LLM


def answer_questions(job: EvaluationJob) -> Evaluation:
    """Load the model, answer every prompt, score the answers.

    Raises:
        UserError: model, prompts or check can't be used.
    """
    check = import_function(job.check, "--check")
    questions = read_questions(Path(job.prompts))
    model = ModelConfig(path=job.model)
    tokenizer = load_tokenizer(model)
    ends = read_ends(model, tokenizer)
    tokenisation = Tokenisation(tokenizer, ends)
    prompts = [question_ids(question, tokenisation) for question in questions]
    longest = max(map(len, prompts))
    engine = start_engine(job.model, job.seed, longest)
    positions = engine.llm_engine.model_config.max_model_len
    if longest >= positions:
        where = next(q.where for q, ids in zip(questions, prompts, strict=True) if len(ids) == longest)
        raise UserError(f"--prompts {where}: {longest} tokens; model {job.model} holds {positions} with the response")
    max_tokens = min(job.max_tokens, positions - longest)

    def scored(**sampling: Any) -> Share:
        scores = []
        for question, responses in zip(
            questions, generate(engine, prompts, ends.ids, max_tokens=max_tokens, **sampling), strict=True
        ):
            texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in responses]
            scores.append([score(check, job.check, question, text) for text in texts])
        return mean_score(scores)

    greedy = scored(temperature=0.0)
    sampled = scored(temperature=job.temperature, n=job.samples, seed=job.seed)
    return Evaluation(greedy, sampled, len(prompts), job.samples)


def start_engine(model: str, seed: int, longest: int) -> LLM:
    """vLLM's engine in this process.

    Args:
        longest: tokens of the longest prompt.

    Raises:
        UserError: vLLM can't load the model.
    """
    import torch

    from actors.engine_options import cpu_arguments, environment

    gpu = torch.cuda.is_available()
    os.environ.update(environment(gpu) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    options = {} if gpu else cpu_arguments(longest + 1)
    from vllm import LLM

    try:
        return LLM(model, skip_tokenizer_init=True, seed=seed, **options)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"model {model}: vLLM can't load it: {first_line(error)}") from error


def generate(engine: LLM, prompts: list[list[int]], ends: Sequence[int], **sampling: Any) -> list[list[list[int]]]:
    """Token ids [prompts][samples][tokens] of the responses, without the token that ended them.

    Args:
        ends: token ids that end a response.
        sampling: of vLLM's ``SamplingParams``.
    """
    from vllm import SamplingParams

    parameters = SamplingParams(detokenize=False, ignore_eos=True, stop_token_ids=list(ends), **sampling)
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
    # A token that ends a response need not be a special one that decoding leaves out.
    return [[_without_end(response.token_ids, ends) for response in output.outputs] for output in outputs]


def _without_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    return list(ids[:-1] if ids and ids[-1] in ends else ids)


if __name__ == "__main__":
    try:
        print(as_json(answer_questions(read_job(sys.stdin.read()))))
    except UserError as error:
        print(as_json(Rejection(str(error))))
