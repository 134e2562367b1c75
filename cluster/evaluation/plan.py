"""What an evaluation asks of a model, worked out before its engine starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.engine_options import CPU_KV_CACHE_BYTES
from cluster.config.sections import DataConfig
from cluster.data.ends import read_ends
from cluster.data.locations import reject_absent
from cluster.data.tokenizer import load_tokenizer
from cluster.data.tokens import Tokenisation
from cluster.evaluation.questions import Question, question_ids, read_questions
from contracts.errors import UserError
from contracts.imports import import_function
from learner.config import ModelConfig
from learner.model.checkpoint_config import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FP32_BYTES = 4


@dataclass(frozen=True)
class EvaluationPlan:
    """Prompts as token ids, and how long sequences get."""

    questions: list[Question]
    architecture: PreTrainedConfig
    tokenisation: Tokenisation
    ends: tuple[int, ...]
    """Token ids that end a response."""
    prompts: list[list[int]]
    most_tokens: list[int]
    """Of each response to each prompt, what the model's positions leave."""
    longest: int
    """Tokens of the longest sequence, prompts and responses: what the engine is made for."""


def plan_evaluation(
    model: str, prompts: Path, check: str, max_tokens: int, data: DataConfig | None = None
) -> EvaluationPlan:
    """Read everything but the model's weights.

    Args:
        max_tokens: longest response that is wanted.
        data: variables and date of the chat template, and special tokens that content holds; None: the defaults.

    Raises:
        UserError: model, tokenizer, prompts or check can't be used, or a prompt leaves no position for a response.
    """
    import_function(check, "--check")
    return plan_responses(model, read_questions(prompts), max_tokens, data)


def plan_responses(
    model: str, questions: list[Question], max_tokens: int, data: DataConfig | None = None
) -> EvaluationPlan:
    """The same without a check, for questions that have been read.

    Raises:
        UserError: model or tokenizer can't be used, or a prompt leaves no position for a response.
    """
    reject_absent(model, "model")
    architecture = read_config(model, key="model")
    template, bos = (data.chat_template, data.bos) if data else (None, DataConfig.model_fields["bos"].default)
    tokenizer = load_tokenizer(ModelConfig(path=model), template, bos)
    ends = read_ends(ModelConfig(path=model), tokenizer)
    tokenisation = Tokenisation(tokenizer, ends, data)
    ids = [question_ids(question, tokenisation) for question in questions]
    turns = [1 + len(question.follow_ups) for question in questions]
    # What later turns add, beside the responses before them, which are as long as they may be.
    later = [
        0 if n == 1 else len(question_ids(q.whole(), tokenisation)) - len(i)
        for q, i, n in zip(questions, ids, turns, strict=True)
    ]
    text = architecture.get_text_config()
    for question, prompt in zip(questions, ids, strict=True):
        if max(prompt) >= text.vocab_size:
            raise UserError(
                f"--prompts {question.where}: token {max(prompt)}, and model {model} has {text.vocab_size} alone; its "
                "tokenizer is another model's"
            )
    positions: int | None = getattr(text, "max_position_embeddings", None)
    most = [
        min(max_tokens, (positions - len(prompt) - more) // n) if positions else max_tokens
        for prompt, more, n in zip(ids, later, turns, strict=True)
    ]
    short = next((i for i, tokens in enumerate(most) if tokens < 1), None)
    if short is not None:
        held = f"model {model} holds {positions} with the response"
        raise UserError(f"--prompts {questions[short].where}: {len(ids[short])} tokens; {held}")
    longest = max(len(p) + more + n * tokens for p, more, n, tokens in zip(ids, later, turns, most, strict=True))
    return EvaluationPlan(questions, architecture, tokenisation, ends.ids, ids, most, longest)


def cache_bytes(architecture: PreTrainedConfig, tokens: int) -> int:
    """A KV cache in bytes that holds a sequence of ``tokens`` tokens twice at least, in fp32."""
    text = architecture.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    of_token = 2 * text.num_hidden_layers * heads * width * FP32_BYTES
    return max(CPU_KV_CACHE_BYTES, 2 * of_token * tokens)
