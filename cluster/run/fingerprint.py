"""Tells one run's training data from another's, whatever their files are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from actors.token_table import TokenTable
from contracts.pair import PreferencePair


def fingerprint(table: TokenTable, batches: Sequence[Sequence[PreferencePair]] = ()) -> str:
    """128 bits, hexadecimal, over all token ids in their order: of the rows, and of recorded batches."""
    checksum = xxhash.xxh3_128()
    for array in _arrays(table, batches):
        checksum.update(f"{array.dtype.str}{array.shape}".encode())
        checksum.update(np.ascontiguousarray(array).data)
    return checksum.hexdigest()


def _arrays(table: TokenTable, batches: Sequence[Sequence[PreferencePair]]) -> Iterable[NDArray[np.generic]]:
    for ragged in (table.prompts, table.responses, table.rejected):
        if ragged is not None:
            yield from (ragged.flat, ragged.offsets)
    for share in table.shares:
        yield np.frombuffer(repr(share).encode(), np.uint8)
    for number, batch in enumerate(batches):
        for pair in batch:
            yield from (np.array([number, pair.start, pair.end]), pair.prompt, pair.chosen, pair.rejected)
