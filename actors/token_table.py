"""The dataset as token ids in a few flat arrays, which Ray shares between processes without copies."""

from __future__ import annotations

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
class TokenTable:
    """Tokenised rows."""

    prompts: Ragged
    responses: Ragged
    rejected: Ragged | None = None

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[Tokens]]) -> TokenTable:
        """From (prompt ids, response ids) or (prompt ids, chosen ids, rejected ids) rows."""
        columns = list(zip(*rows, strict=True))
        return cls(*(Ragged.of(column) for column in columns))

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
