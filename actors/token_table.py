"""The dataset as token ids in a few flat arrays, which Ray shares between processes without copies."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.pair import TokenIds, as_token_ids

Tokens = Sequence[int] | NDArray[np.integer]
"""Token ids of one sequence, of any integer type."""


class Row(NamedTuple):
    """One row; int32 [tokens] each, views of the table."""

    prompt: TokenIds
    response: TokenIds
    """End-of-sequence included, unless it was cut at the length limit."""
    rejected: TokenIds | None = None
    """The given dispreferred response, where the dataset has one."""


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths in one array."""

    flat: TokenIds
    """int32 [all tokens]"""
    offsets: NDArray[np.int64]
    """int64 [sequences + 1]"""

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> Ragged:
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        flat = np.empty(int(offsets[-1]), np.int32)
        for sequence, first, last in zip(sequences, offsets[:-1], offsets[1:], strict=True):
            flat[first:last] = as_token_ids(sequence)
        return cls(flat, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> TokenIds:
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """int32 [sequences]"""
        return np.diff(self.offsets).astype(np.int32)


@dataclass(frozen=True)
class DatasetShare:
    """Rows of one dataset, and how often they are drawn."""

    first: int
    rows: int
    """They are the rows [first, first + rows) of the table."""
    weight: float
    """Relative to the other shares of the table."""


class RaggedBuilder:
    """Sequences one after another into one growing array: 4 bytes a token, and an eighth more while it grows."""

    def __init__(self) -> None:
        # array.array grows in place (realloc moves large blocks without copying them); a list of arrays would be
        # copied at the end, with twice the memory.
        self._flat, self._offsets = array("i"), array("q", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def add(self, tokens: Tokens) -> None:
        self._flat.frombytes(as_token_ids(tokens).tobytes())
        self._offsets.append(len(self._flat))

    def ragged(self) -> Ragged:
        """What was added, as views: nothing may be added after that."""
        return Ragged(np.frombuffer(self._flat, np.int32), np.frombuffer(self._offsets, np.int64))


class TableBuilder:
    """Rows one after another into a table."""

    def __init__(self, columns: int) -> None:
        """``columns``: 2 (prompt, response) or 3 (prompt, chosen, rejected)."""
        self._columns = tuple(RaggedBuilder() for _ in range(columns))

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, row: Sequence[Tokens]) -> None:
        for column, tokens in zip(self._columns, row, strict=True):
            column.add(tokens)

    def table(self, shares: tuple[DatasetShare, ...] = ()) -> TokenTable:
        """What was added; nothing may be added after that."""
        prompts, responses, *rejected = (column.ragged() for column in self._columns)
        return TokenTable(prompts, responses, rejected[0] if rejected else None, shares)


@dataclass(frozen=True)
class TokenTable:
    """Tokenised rows."""

    prompts: Ragged
    responses: Ragged
    rejected: Ragged | None = None
    shares: tuple[DatasetShare, ...] = ()
    """Of the datasets that the rows come from; () where all rows are drawn alike."""

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[Tokens]]) -> TokenTable:
        """From (prompt ids, response ids) or (prompt ids, chosen ids, rejected ids) rows."""
        prompts, responses, *rejected = (Ragged.of(column) for column in zip(*rows, strict=True))
        return cls(prompts, responses, rejected[0] if rejected else None)

    @classmethod
    def empty(cls) -> TokenTable:
        return cls(Ragged.of([]), Ragged.of([]))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, row: int) -> Row:
        return Row(self.prompts[row], self.responses[row], self.rejected[row] if self.rejected else None)

    @property
    def response_lengths(self) -> NDArray[np.int32]:
        """int32 [rows]"""
        return self.responses.lengths
