"""Special tokens that stand in the text of a conversation are text: they open no turn and end none."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cluster.data.conversation import Unusable

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

FIRST_MARK = 0x100000
"""Characters for private use (plane 16): each stands for the name of one special token in a text."""
ESCAPED = re.compile(r"\\udb[c-f][0-9a-f]", re.IGNORECASE)
"""Such a character as JSON in ASCII has it."""
OPEN, CLOSE = "\U0010fffc", "\U0010fffd"
"""Around the number of a special token that the template wrote."""


class SpecialText:
    """Finds the names of special tokens in content and encodes them as the plain text that they are."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = (), allowed: Collection[str] = ()):
        """
        Args:
            ends: end tokens, which count as special.
            allowed: names that texts hold on purpose.
        """
        added = tokenizer.added_tokens_decoder
        special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special or i in ends}
        self._tokenizer = tokenizer
        self._ids = {str(tokenizer.convert_ids_to_tokens(i)): i for i in sorted(special)}
        self.names = frozenset(self._ids)
        """Of all special tokens."""
        self.added = frozenset(special & added.keys())
        """Ids of those at which a text is split before it is tokenised."""
        self._names = [name for name in self._ids if name and name not in allowed]
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._first = tuple({name[0] for name in self._names})
        self._marks = {name: chr(FIRST_MARK + i) for i, name in enumerate(self._names)}
        self._unmarks = {ord(mark): name for name, mark in self._marks.items()}

    def occurs(self, value: Any) -> bool:
        """Whether a name stands anywhere in a text, or in the texts of lists and objects."""
        if isinstance(value, str):
            return any(c in value for c in self._first) and self._pattern.search(value) is not None
        if isinstance(value, dict):
            return any(map(self.occurs, value.values()))
        return isinstance(value, list | tuple) and any(map(self.occurs, value))

    def marked(self, value: Any) -> Any:
        """The same with a private character in place of each name, which a template passes on like any other.

        Raises:
            Unusable: such characters stand in the text.
        """
        if isinstance(value, str):
            if any(ord(c) >= FIRST_MARK for c in value):
                raise Unusable("with characters for private use (plane 16) beside the names of special tokens")
            return self._pattern.sub(lambda found: self._marks[found.group()], value)
        if isinstance(value, dict):
            return {key: self.marked(inner) for key, inner in value.items()}
        return [self.marked(inner) for inner in value] if isinstance(value, list | tuple) else value

    def unmarked(self, text: str) -> str:
        return text.translate(self._unmarks)

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text in which content is marked: names that are left are the template's own.

        Raises:
            Unusable: this tokenizer can't write such a name as text, or the template did not pass it on.
        """
        if ESCAPED.search(text):
            raise Unusable("whose text speaks of special tokens, which the chat template writes otherwise")
        names = sorted({self._unmarks[ord(c)] for c in text if ord(c) in self._unmarks})
        said = f"whose text speaks of {', '.join(names)}, which this tokenizer can't write as text"
        if self._encoder is None:
            raise Unusable(said)
        encoder, numbers = self._encoder
        written = self._every_name.sub(lambda found: f"{OPEN}{self._ids[found.group()]}{CLOSE}", text)
        ids = encoder.encode(self.unmarked(written), add_special_tokens=False).ids
        if {self._ids[name] for name in self._names} & set(ids) - {
            self._tokenizer.unk_token_id
        }:  # the name is a word of the vocabulary, as with one token a word
            raise Unusable(said)
        return [numbers.get(i, i) for i in ids]

    @cached_property
    def _every_name(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))))

    @cached_property
    def _encoder(self) -> tuple[Tokenizer, dict[int, int]] | None:
        """A copy of the tokenizer that takes no special token from text, but stand-ins for those that a template wrote;
        and which token each stand-in is. None for a tokenizer without the Rust half."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        from tokenizers import AddedToken, Tokenizer

        encoder = Tokenizer.from_str(backend.to_str())
        encoder.no_truncation()
        encoder.no_padding()
        numbers: dict[int, int] = {}
        for i in self._ids.values():
            token = self._tokenizer.added_tokens_decoder.get(i)
            flags = ("single_word", "lstrip", "rstrip", "normalized")
            same = {flag: getattr(token, flag) for flag in flags} if token else {"normalized": False}
            stand_in = f"{OPEN}{i}{CLOSE}"
            encoder.add_tokens([AddedToken(stand_in, special=False, **same)])
            number = encoder.token_to_id(stand_in)
            assert number is not None, "it was just added"
            numbers[number] = i
        encoder.encode_special_tokens = True
        return encoder, numbers
