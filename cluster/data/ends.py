"""The tokens that end a response: computed once per run, the same for data, engines, splice, evaluation and export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.data.conversation import Unusable
from cluster.data.rendering import ANSWER, PROBE, ChatTemplate
from contracts.errors import UserError, all_lines
from learner.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class EndTokens:
    """The set, and how the chat template writes it."""

    ids: tuple[int, ...]
    """Each once; the tokenizer's end-of-sequence token is the first."""
    closing: int
    """What is appended to a response that has none of them."""
    written: int | None
    """How many of them the chat template writes after the content of the last assistant turn; None where there is no
    template, or none that tells."""
    origin: str
    """Each token with where it comes from, for the log."""

    def __str__(self) -> str:
        return f"a response ends at {self.origin}"


def read_ends(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> EndTokens:
    """The set for a run of ``model``.

    Raises:
        UserError: the model's generation_config.json can't be read.
    """
    return end_tokens(tokenizer, configured_ends(model.path))


def end_tokens(tokenizer: PreTrainedTokenizerBase, configured: Sequence[int] = ()) -> EndTokens:
    """End-of-sequence token, what ``generation_config`` lists, and the special token that closes an assistant turn.

    Args:
        tokenizer: with its chat template, if it has one.
        configured: ``eos_token_id`` of the generation_config.
    """
    eos: int = tokenizer.eos_token_id
    origins = {eos: ["tokenizer"]}
    for token in configured:
        origins.setdefault(token, []).append("generation_config")
    tail = _tail(tokenizer)
    closing = _first_special(tokenizer, tail or "")
    if closing is not None:
        origins.setdefault(closing, []).append("chat template")
    named = (f"{tokenizer.convert_ids_to_tokens(i)} ({', '.join(origin)})" for i, origin in origins.items())
    written = None if tail is None else sum(token in origins for token in _ids(tokenizer, tail))
    return EndTokens(tuple(origins), eos if closing is None else closing, written, ", ".join(named))


def configured_ends(path: str) -> tuple[int, ...]:
    """``eos_token_id`` of the model's generation_config; () where it has none.

    Raises:
        UserError: the file can't be read, or lists something else than token ids.
    """
    from transformers import GenerationConfig

    from learner.model.quiet import quiet

    if Path(path).is_dir() and not (Path(path) / GENERATION_CONFIG).is_file():
        return ()
    try:
        with quiet():
            ends: object = GenerationConfig.from_pretrained(path).eos_token_id
    except Exception as error:  # transformers' own checks raise several kinds
        if isinstance(error, OSError) and not Path(path).is_dir():
            return ()  # on the hub a missing file raises what a damaged one does
        raise UserError(f"model.path {path}: {GENERATION_CONFIG} can't be read: {all_lines(error)}") from error
    if ends is None:
        return ()
    listed = ends if isinstance(ends, list) else [ends]
    if not all(type(token) is int and token >= 0 for token in listed):
        raise UserError(f"model.path {path}: {GENERATION_CONFIG}: eos_token_id {ends!r}: a token id, or a list of them")
    return tuple(listed)


def _tail(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the template writes after the last assistant turn's content; None if there is no template or it does not
    show a plain answer as it is."""
    if tokenizer.chat_template is None:
        return None
    try:
        whole = ChatTemplate.of(tokenizer).render(PROBE, add_generation_prompt=False)
    except Unusable:  # the template rejects such a conversation: it wants a system turn, or tools
        return None
    _, answer, tail = whole.rpartition(ANSWER)
    return tail if answer else None


def _first_special(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The first special token of ``text``; what stands for unknown text is none."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
    return next((i for i in _ids(tokenizer, text) if i in special), None)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
