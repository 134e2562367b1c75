"""What the process of an evaluation does: it starts an engine and lets it answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config.sections import DataConfig
from cluster.data.tokenizer import text_decoder
from cluster.evaluation.checks import mean_score, score
from cluster.evaluation.messages import Evaluation, EvaluationJob, Responses, ResponsesJob, Share
from cluster.evaluation.plan import EvaluationPlan, cache_bytes, plan_evaluation, plan_responses
from cluster.evaluation.questions import question_ids
from cluster.reports.samples import UNREADABLE
from contracts.errors import UserError, first_line
from contracts.imports import import_function

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams


def answer_questions(job: EvaluationJob) -> Evaluation:
    """Load the model, answer every prompt, score the answers.

    Raises:
        UserError: model, prompts or check can't be used.
    """
    data = DataConfig.model_validate(job.data) if job.data else None
    plan = plan_evaluation(job.model, Path(job.prompts), job.check, job.max_tokens, data)
    check = import_function(job.check, "--check")
    engine = start_engine(job.model, job.seed, plan)
    decode = decoder(plan)

    def scored(**sampling: Any) -> Share:
        scores = []
        for question, responses in zip(plan.questions, generate(engine, plan, **sampling), strict=True):
            scores.append([score(check, job.check, question, decode(ids)) for ids in responses])
        return mean_score(scores)

    greedy = scored(temperature=0.0)
    sampled = scored(temperature=job.temperature, n=job.samples, seed=job.seed)
    return Evaluation(greedy, sampled, len(plan.prompts), job.samples)


def respond(job: ResponsesJob) -> Responses:
    """Load the model and answer every question, then every follow-up.

    Raises:
        UserError: model or questions can't be used.
    """
    from vllm import SamplingParams

    data = DataConfig.model_validate(job.data) if job.data else None
    plan = plan_responses(job.model, job.questions, job.max_tokens, data)
    engine = start_engine(job.model, job.seed, plan)
    decode = decoder(plan)
    said: list[list[str]] = [[] for _ in plan.questions]
    for turn in range(1 + max(len(question.follow_ups) for question in plan.questions)):
        now = [i for i, question in enumerate(plan.questions) if len(question.follow_ups) >= turn]
        asked = [plan.questions[i].after(said[i]) for i in now]
        prompts = [
            question_ids(question, plan.tokenisation) if turn else plan.prompts[i]
            for i, question in zip(now, asked, strict=True)
        ]
        parameters = []
        for i, prompt, question in zip(now, prompts, asked, strict=True):
            # A response that is tokenised again may have more tokens than were sampled.
            most = min(plan.most_tokens[i], plan.longest - len(prompt))
            if most < 1:
                raise UserError(
                    f"--prompts {question.where}: turn {turn + 1} finds no room: {len(prompt)} tokens before it"
                )
            seed = job.seed if question.temperature else None
            sampling = {"temperature": question.temperature, "seed": seed, "max_tokens": most}
            parameters.append(SamplingParams(**sampling, **stopping(plan)))
        for i, (ids,) in zip(now, sample(engine, prompts, parameters), strict=True):
            said[i].append(decode(ids))
    return Responses(said)


def decoder(plan: EvaluationPlan) -> Callable[[Sequence[int]], str]:
    """From the token ids of a response to its text."""
    decode = text_decoder(plan.tokenisation.tokenizer, skip_special_tokens=True)
    return lambda ids: decode(ids).rstrip(UNREADABLE)  # a limit may cut a character


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

    stops = stopping(plan)
    parameters = [SamplingParams(max_tokens=most, **stops, **sampling) for most in plan.most_tokens]
    return sample(engine, plan.prompts, parameters)


def stopping(plan: EvaluationPlan) -> dict[str, Any]:
    """Arguments of ``SamplingParams`` by which a response ends where the run's own would."""
    return {"detokenize": False, "ignore_eos": True, "stop_token_ids": list(plan.ends)}


def sample(engine: LLM, prompts: list[list[int]], parameters: list[SamplingParams]) -> list[list[list[int]]]:
    """Token ids [prompts][samples][tokens] of the responses, without the token that ended them.

    Raises:
        UserError: vLLM rejects a prompt.
    """
    from vllm.exceptions import VLLMClientError

    ends = parameters[0].stop_token_ids or []
    try:
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
    except (ValueError, VLLMClientError) as error:
        raise UserError(f"--prompts: vLLM rejects a prompt: {first_line(error)}") from error
    # A token that ends a response need not be a special one that decoding leaves out.
    return [[_without_end(response.token_ids, ends) for response in output.outputs] for output in outputs]


def _without_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    return list(ids[:-1] if ids and ids[-1] in ends else ids)
