"""Where the weights lie in the ranks' shards, by name: so a checkpoint can be read by another number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor


class Piece(NamedTuple):
    """A run of one weight's values within a master."""

    weight: str
    start: int
    """First value, in the flattened weight."""
    size: int
    """Values."""
    offset: int
    """Where it begins in the flattened master."""


def whole(named: Iterable[tuple[str, Tensor]]) -> list[list[Piece]]:
    """Each master is a weight (ZeRO 0)."""
    return [[Piece(name, 0, weight.numel(), 0)] for name, weight in named]


def slice_of(layout: Sequence[tuple[str, int, int]], first: int, last: int) -> list[Piece]:
    """The pieces in the values [first, last) of a flat group (ZeRO 1 and 2).

    Args:
        layout: (name, size, offset in the group) of the group's weights.
    """
    pieces = []
    for name, size, offset in layout:
        begins, ends = max(first, offset), min(last, offset + size)
        if begins < ends:
            pieces.append(Piece(name, begins - offset, ends - begins, begins - first))
    return pieces


def parts_of(layout: Sequence[tuple[str, int, int]], rank: int) -> list[Piece]:
    """The pieces in a rank's master where every weight is cut into equal parts, the last of them padded (ZeRO 3).

    Args:
        layout: (name, size, size of a part) of the master's weights.
    """
    pieces, offset = [], 0
    for name, size, part in layout:
        count = min(part, size - rank * part)
        if count > 0:
            pieces.append(Piece(name, rank * part, count, offset))
        offset += part
    return pieces
