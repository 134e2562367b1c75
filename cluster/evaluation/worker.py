"""The process with the engine: ``python -m cluster.evaluation.worker`` reads a job from stdin, prints its answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config.sections import DataConfig
from cluster.data.tokenizer import text_decoder
from cluster.evaluation.checks import mean_score, score
from cluster.evaluation.messages import Evaluation, EvaluationJob, Rejection, Share, as_json, read_job
from cluster.evaluation.plan import EvaluationPlan, cache_bytes, plan_evaluation
from cluster.reports.samples import UNREADABLE
from contracts.errors import UserError, first_line

if TYPE_CHECKING:
    from vllm import LLM


def answer_questions(job: EvaluationJob) -> Evaluation:
    """Load the model, answer every prompt, score the answers.

    Raises:
        UserError: model, prompts or check can't be used.
    """
    data = DataConfig.model_validate(job.data) if job.data else None
    plan = plan_evaluation(job.model, Path(job.prompts), job.check, job.max_tokens, data)
    engine = start_engine(job.model, job.seed, plan)
    decode = text_decoder(plan.tokenizer, skip_special_tokens=True)

    def scored(**sampling: Any) -> Share:
        scores = []
        for question, responses in zip(plan.questions, generate(engine, plan, **sampling), strict=True):
            texts = [decode(ids).rstrip(UNREADABLE) for ids in responses]  # a limit may cut a character
            scores.append([score(plan.check, job.check, question, text) for text in texts])
        return mean_score(scores)

    greedy = scored(temperature=0.0)
    sampled = scored(temperature=job.temperature, n=job.samples, seed=job.seed)
    return Evaluation(greedy, sampled, len(plan.prompts), job.samples)


def start_engine(model: str, seed: int, plan: EvaluationPlan) -> LLM:
    """vLLM's engine in this process, for sequences as long as the plan's.

    Raises:
        UserError: vLLM can't load the model.
    """
    import torch

    from actors.engine import LOADING_ERRORS
    from actors.engine_options import cpu_arguments, environment

    gpu = torch.cuda.is_available()
    os.environ.update(environment(gpu) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    options = {} if gpu else cpu_arguments(plan.longest, cache_bytes(plan.architecture, plan.longest))
    from vllm import LLM
    from vllm.exceptions import VLLMError

    try:
        return LLM(model, skip_tokenizer_init=True, seed=seed, max_model_len=plan.longest, **options)
    except (*LOADING_ERRORS, VLLMError) as error:
        raise UserError(f"model {model}: vLLM can't load it: {first_line(error)}") from error


def generate(engine: LLM, plan: EvaluationPlan, **sampling: Any) -> list[list[list[int]]]:
    """Token ids [prompts][samples][tokens] of the responses, without the token that ended them.

    Args:
        sampling: of vLLM's ``SamplingParams``.

    Raises:
        UserError: vLLM rejects a prompt.
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError

    ends = list(plan.ends)
    parameters = [
        SamplingParams(detokenize=False, ignore_eos=True, stop_token_ids=ends, max_tokens=most, **sampling)
        for most in plan.most_tokens
    ]
    prompts = [{"prompt_token_ids": ids} for ids in plan.prompts]
    try:
        outputs = engine.generate(prompts, parameters, use_tqdm=False)
    except (ValueError, VLLMClientError) as error:
        raise UserError(f"--prompts: vLLM rejects a prompt: {first_line(error)}") from error
    # A token that ends a response need not be a special one that decoding leaves out.
    return [[_without_end(response.token_ids, ends) for response in output.outputs] for output in outputs]


def _without_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    return list(ids[:-1] if ids and ids[-1] in ends else ids)


if __name__ == "__main__":
    try:
        print(as_json(answer_questions(read_job(sys.stdin.read()))))
    except UserError as error:
        print(as_json(Rejection(str(error))))
