"""The tokens that end a response: computed once per run, the same for data, engines, splice, evaluation and export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.data.conversation import Unusable, render
from contracts.errors import UserError, first_line
from learner.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_CONFIG = "generation_config.json"
QUESTION, ANSWER = "How many days has a week?", "It has seven days."
"""A conversation that every chat template takes; templates may strip white space around the answer."""


@dataclass(frozen=True)
class EndTokens:
    """The set, and how the chat template writes it."""

    ids: tuple[int, ...]
    """Each once; the tokenizer's end-of-sequence token is the first."""
    closing: int
    """What is appended to a response that has none of them."""
    tail: str | None
    """What the chat template writes after the content of the last assistant turn; None where there is no template, or
    none that tells."""
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
    return EndTokens(tuple(origins), eos if closing is None else closing, tail, ", ".join(named))


def configured_ends(path: str) -> tuple[int, ...]:
    """``eos_token_id`` of the model's generation_config; () where it has none.

    Raises:
        UserError: the file can't be read, or lists something else than token ids.
    """
    from transformers import GenerationConfig

    if Path(path).is_dir() and not (Path(path) / GENERATION_CONFIG).is_file():
        return ()
    try:
        ends: object = GenerationConfig.from_pretrained(path).eos_token_id
    except Exception as error:  # transformers' own checks raise several kinds
        if isinstance(error, OSError) and not Path(path).is_dir():
            return ()  # on the hub a missing file raises what a damaged one does
        raise UserError(f"model.path {path}: {GENERATION_CONFIG} can't be read: {first_line(error)}") from error
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
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    try:
        whole = render(turns, tokenizer, add_generation_prompt=False)
    except Unusable:  # the template rejects such a conversation: it wants a system turn, or tools
        return None
    _, answer, tail = whole.rpartition(ANSWER)
    return tail if answer else None


def _first_special(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The first special token of ``text``; what stands for unknown text is none."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
    return next((i for i in _ids(tokenizer, text) if i in special), None)


def ended(ids: list[int], ends: EndTokens) -> list[int]:
    """A response of plain text, up to its first end; ``ends.closing`` is appended if it has none."""
    place = next(_places(ids, ends), None)
    return [*ids, ends.closing] if place is None else ids[: place + 1]


def closed(ids: list[int], text: str, ends: EndTokens, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A response that the template wrote, up to the first end that the template itself wrote.

    An end that stands in the content, because the content speaks of it, becomes the plain text that it is.

    Args:
        ids: int [tokens] of ``text``.
        text: content and what the template writes after it.

    Raises:
        Unusable: the tokenizer has no other way to write an end that stands in the content.
    """
    if ends.tail is None or not text.endswith(ends.tail):
        return ended(ids, ends)
    places = list(_places(ids, ends))
    written = sum(token in ends.ids for token in _ids(tokenizer, ends.tail))
    if len(places) <= written:  # the content has none
        return ended(ids, ends)
    first = places[len(places) - written] if written else len(ids)
    kept: list[int] = []
    for token in ids[:first]:
        kept += _spelled(token, tokenizer, ends) if token in ends.ids else [token]
    return [*kept, ids[first] if written else ends.closing]


def _places(ids: Iterable[int], ends: EndTokens) -> Iterator[int]:
    return (place for place, token in enumerate(ids) if token in ends.ids)


def _spelled(token: int, tokenizer: PreTrainedTokenizerBase, ends: EndTokens) -> list[int]:
    """The token's name as plain text."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    ids: list[int] = tokenizer(name, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if any(i in ends.ids for i in ids):
        raise Unusable(f"whose response speaks of {name}, which this tokenizer can't write as text")
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
