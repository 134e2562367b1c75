"""From a sample to token ids: the whole is tokenised at once and split where prompt and response meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster.config.sections import DataConfig
from cluster.data.conversation import Message, Messages, Unusable
from cluster.data.ends import EndTokens
from cluster.data.rendering import ChatTemplate
from cluster.data.samples import Dialogue, Note, Sample
from cluster.data.special_text import SpecialText
from cluster.data.tokenizer import opening, vocabulary_size
from contracts.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import BatchEncoding, PreTrainedTokenizerBase

HEADERS, HEADER_CHARACTERS = 1000, 100
"""Ends of prompts, after their last special token, whose ids are remembered, and the longest of them."""
Ids = NDArray[np.int32]

MERGED = "whose response begins within a token of the prompt; the split is before that token"


@dataclass(frozen=True)
class Texts:
    """A sample as text."""

    prompt: str
    """With what asks for a response; it opens every whole."""
    wholes: tuple[str, ...]
    """Prompt and response, or prompt and chosen, prompt and rejected."""
    templated: bool
    """Whether a chat template wrote it, and with it every special token."""
    marked: bool = False
    """Whether it speaks of special tokens, which ``SpecialText`` has marked."""


@dataclass(frozen=True)
class Tokens:
    """A sample as token ids, before the length limits."""

    prompt: Ids
    responses: tuple[Ids, ...]
    """Each up to its first end token."""
    opening: int = 0
    """Tokens at the beginning of the prompt that open every sequence."""


class Tokenisation:
    """What turns samples into token ids in one run: tokenizer, template, end tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: EndTokens, data: DataConfig | None = None) -> None:
        """
        Raises:
            UserError: ``data.content_tokens`` names something else.
        """
        self.tokenizer, self.ends = tokenizer, ends
        self.template = ChatTemplate.of(tokenizer, data)
        allowed = data.content_tokens if data else ()
        self._special = SpecialText(tokenizer, ends.ids, allowed)
        if unknown := [name for name in allowed if name not in self._special.names]:
            raise UserError(f"data.content_tokens {', '.join(unknown)}: no special token of this tokenizer")
        if ending := [name for name in allowed if tokenizer.convert_tokens_to_ids(name) in ends.ids]:
            raise UserError(f"data.content_tokens {', '.join(ending)}: it ends a response, so content can't hold it")
        self._opening = opening(tokenizer)
        self._splits = np.zeros(vocabulary_size(tokenizer), bool)
        self._splits[list(self._special.added)] = True
        self._headers: dict[str, list[int]] = {}
        self._checked = False

    def texts(self, sample: Sample, note: Note) -> Texts:
        """The sample as text.

        Raises:
            UserError: the tokenizer has no chat template for a conversation, or none that can be used.
            Unusable: the template can't render it, or it is no Unicode.
        """
        if not isinstance(sample, Dialogue):
            texts = Texts(sample.prompt, tuple(sample.prompt + r for r in sample.responses), templated=False)
            if self._special.occurs(sample.prompt.removeprefix(str(self.tokenizer.bos_token))):
                note("whose prompt is text with special tokens in it, which are read as such")
        else:
            self._check_template()
            if sample.tools and not self.template.shows_tools():
                note("whose tools are ignored: the chat template does not show any")
            texts = self._rendered(sample, note)
        for whole in texts.wholes:
            _validate_unicode(whole)
        return texts

    def _check_template(self) -> None:
        """Once: a run of text needs none."""
        if not self._checked:
            self.template.reject_unusable()
            self.template.reject_unknown_variables()
            self._checked = True

    def prompt_ids(self, prompt: str | Messages, tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Token ids of a prompt alone, as an engine is given it.

        Raises:
            UserError: the tokenizer has no chat template for a conversation.
            Unusable: the template can't render it.
        """
        if isinstance(prompt, str):
            _validate_unicode(prompt)
            return self._opened(self._encode([prompt])[0], templated=False)
        self._check_template()
        marked = self._special.occurs([*prompt, *(tools or ())])
        messages: Messages = self._special.marked(prompt) if marked else prompt
        shown: list[dict[str, Any]] | None = self._special.marked(tools) if marked else tools
        text = self.template.render(messages, shown, add_generation_prompt=True)
        _validate_unicode(text)
        return self._special.encode(text) if marked else self._encode([text])[0]

    def tokens(self, chunk: Sequence[Texts], notes: Sequence[Note]) -> list[Tokens | Unusable]:
        """Each sample as token ids, or why it can't be used."""
        encoded = iter(self._encoded([texts for texts in chunk if not texts.marked]))
        results: list[Tokens | Unusable] = []
        for texts, note in zip(chunk, notes, strict=True):
            try:
                if texts.marked:
                    ids = [self._special.encode(text) for text in (texts.prompt, *texts.wholes)]
                else:
                    ids = next(encoded)
                results.append(self._split(texts, ids, note))
            except Unusable as reason:
                results.append(reason)
        return results

    def _encoded(self, chunk: Sequence[Texts]) -> list[list[list[int]]]:
        """Ids of the prompt alone and of each whole, of samples in which nothing is marked."""
        if not chunk:
            return []
        batch = self._batch([whole for texts in chunk for whole in texts.wholes])
        ids, encodings = iter(batch["input_ids"]), iter(batch.encodings or ())
        wholes = [[next(ids) for _ in texts.wholes] for texts in chunk]
        asked: list[list[int] | None] = [None] * len(chunk)
        if batch.encodings:
            of_wholes = [[next(encodings) for _ in texts.wholes] for texts in chunk]
            asked = [self._asked(t.prompt, w[0], e[0]) for t, w, e in zip(chunk, wholes, of_wholes, strict=True)]
        rest = iter(self._encode([texts.prompt for texts, found in zip(chunk, asked, strict=True) if found is None]))
        return [[next(rest) if a is None else a, *w] for a, w in zip(asked, wholes, strict=True)]

    def _asked(self, prompt: str, whole: list[int], encoding: Encoding) -> list[int] | None:
        """Ids of the prompt alone, out of those of the whole: special tokens split a text, so only what follows the
        prompt's last one is tokenised again. That is mostly the same header in all rows. None where it is long."""
        for place in np.flatnonzero(self._splits[whole])[::-1].tolist():
            span = encoding.token_to_chars(place)
            assert span is not None, "the tokens are the text's own"
            start = span[0]
            if start < len(prompt):
                tail = prompt[start:]
                return [*whole[:place], *self._header(tail)] if len(tail) <= HEADER_CHARACTERS else None
        return None

    def _header(self, text: str) -> list[int]:
        if text not in self._headers:
            if len(self._headers) >= HEADERS:
                self._headers.clear()
            (self._headers[text],) = self._encode([text])
        return self._headers[text]

    def _rendered(self, sample: Dialogue, note: Note) -> Texts:
        prompt, responses, tools = sample.prompt, sample.responses, sample.tools
        marked = self._special.occurs([*prompt, *responses, *(tools or ())])
        if marked:
            prompt, responses = self._special.marked(prompt), tuple(self._special.marked(responses))
            tools = self._special.marked(tools)
        asked, wholes = self.template.prompt_and_wholes(prompt, responses, tools)
        if any(not _shows(whole[len(asked) :], turn) for turn, whole in zip(responses, wholes, strict=True)):
            note("whose response the chat template writes otherwise than it is given")
        if not all(_shows(asked, turn) for turn in prompt):
            note("with turns that the chat template leaves out or writes otherwise")
        for key in self.template.ignored_keys([*prompt, *responses]):
            note(f"whose messages have {key}, which the chat template does not show")
        for role in self.template.unknown_roles([*prompt, *responses]):
            note(f"with a turn of role {role}, of which the chat template knows nothing")
        return Texts(asked, wholes, templated=True, marked=marked)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._batch(texts)["input_ids"] if texts else []
        return ids

    def _batch(self, texts: list[str]) -> BatchEncoding:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)

    def _opened(self, ids: list[int], *, templated: bool) -> list[int]:
        """With what opens a sequence: a template has written it, text may have brought it."""
        if templated or ids[: len(self._opening)] == self._opening:
            return ids
        return [*self._opening, *ids]

    def _split(self, texts: Texts, ids: list[list[int]], note: Note) -> Tokens:
        """Prompt and responses out of the ids of prompt and wholes.

        Ids of a prompt alone need not open the ids of the whole: a token may reach over the seam. The prompt is what
        both have in common, so that the response's ids are those of the whole.
        """
        asked, *wholes = (np.asarray(self._opened(row, templated=texts.templated), np.int32) for row in ids)
        split = min(_common(asked, whole) for whole in wholes)
        if not split:
            raise Unusable("with an empty prompt" if not len(asked) else "whose prompt has no token of its own")
        if split < len(asked):
            note(MERGED)
        responses = tuple(self._ended(whole[split:], texts.templated, note) for whole in wholes)
        if any(len(response) == 1 and response[0] in self.ends.ids for response in responses):
            raise Unusable("with an empty response")
        for one, other in pairwise(responses):
            if np.array_equal(one, other):
                raise Unusable("whose chosen and rejected are the same")
        count = len(self._opening)
        opened = count if wholes[0][:count].tolist() == self._opening and split > count else 0
        return Tokens(wholes[0][:split], responses, opened)

    def _ended(self, ids: Ids, templated: bool, note: Note) -> Ids:
        """Up to the first end token; one is appended if there is none.

        Raises:
            Unusable: the content of a conversation holds an end that is an ordinary token.
        """
        places = np.flatnonzero(np.isin(ids, self.ends.ids))
        if not len(places):
            return np.append(ids, np.int32(self.ends.closing))
        if templated:
            if self.ends.written is not None and len(places) > max(1, self.ends.written):
                name = self.tokenizer.convert_ids_to_tokens(int(ids[places[0]]))
                raise Unusable(f"whose text speaks of {name}, which this tokenizer can't write as text")
        elif places[0] + 1 < len(ids) and str(self.tokenizer.decode(ids[places[0] + 1 :].tolist())).strip():
            note("with text after an end token in the response, which is cut off")
        return ids[: places[0] + 1]


def _common(one: Ids, other: Ids) -> int:
    """Length of the common beginning."""
    shorter = min(len(one), len(other))
    differs = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differs[0]) if len(differs) else shorter


def _shows(rendered: str, turn: Message) -> bool:
    """Whether a turn's content is in what the template wrote; templates strip white space around it."""
    return str(turn["content"]).strip() in rendered


def _validate_unicode(text: str) -> None:
    """
    Raises:
        Unusable: it has half of a surrogate pair, which no tokenizer takes.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable("with text that is no Unicode (half of a surrogate pair)") from error
