"""Reads the state that some ranks saved as the state of a rank of another group: other ranks, another ZeRO stage.

Values are copied by weight and position, so nothing is rounded. What is not kept for every value, such as a step
counter, is the same in all shards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from contracts.errors import UserError, first_line
from learner.zero.pieces import Piece


@dataclass(frozen=True)
class SavedShard:
    """What one rank has saved."""

    path: Path
    """Its tensors: ``masters.M``, ``ema.M``, ``reference.M``, ``optimizer.M.NAME``."""
    pieces: list[list[Piece]]
    """By master."""
    optimizer_numbers: list[dict[str, Any]]
    """By master."""


class Resharding:
    """The saved shards, looked up by weight."""

    def __init__(self, shards: Sequence[SavedShard]) -> None:
        """
        Raises:
            UserError: a file can't be read.
        """
        self._shards = shards
        try:
            self._files = [safe_open(shard.path, framework="pt") for shard in shards]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{error}: damaged ({first_line(error)}); resume from another checkpoint") from error
        self._names = [set(file.keys()) for file in self._files]
        self._found: defaultdict[str, list[tuple[Piece, int, int]]] = defaultdict(list)
        """(piece, shard, master) by weight."""
        for number, shard in enumerate(shards):
            for master, pieces in enumerate(shard.pieces):
                for piece in pieces:
                    held = self._found[piece.weight]
                    if all(other[:3] != piece[:3] for other, _, _ in held):  # under ZeRO 0 every rank has all
                        held.append((piece, number, master))

    def values(self, part: str, pieces: Sequence[Sequence[Piece]], like: Sequence[Tensor]) -> list[Tensor]:
        """``masters``, ``ema`` or ``reference`` of the new shard; empty where none was saved.

        Args:
            pieces: of the new shard's masters.
            like: tensors of the shapes of the new masters.

        Raises:
            UserError: a weight of the model is not in the checkpoint, or has another size.
        """
        if not any(name.startswith(f"{part}.") for names in self._names for name in names):
            return []
        return [
            self._assembled(f"{part}.{{}}", of_master, tensor) for of_master, tensor in zip(pieces, like, strict=True)
        ]

    def optimizer(self, pieces: Sequence[Sequence[Piece]], like: Sequence[Tensor]) -> list[dict[str, Any]]:
        """The optimizer's state of the new shard's masters. Arguments and errors as of ``values``."""
        return [self._optimizer_of(of_master, tensor) for of_master, tensor in zip(pieces, like, strict=True)]

    def _optimizer_of(self, pieces: Sequence[Piece], like: Tensor) -> dict[str, Any]:
        shard, master = self._any_owner(pieces)
        prefix = f"optimizer.{master}."
        size = self._files[shard].get_slice(f"masters.{master}").get_shape()
        state: dict[str, Any] = dict(self._shards[shard].optimizer_numbers[master])
        for name in sorted(self._names[shard]):
            if not name.startswith(prefix):
                continue
            kind = name.removeprefix(prefix)
            if self._files[shard].get_slice(name).get_shape() == size and size:
                state[kind] = self._assembled(f"optimizer.{{}}.{kind}", pieces, like)
            else:
                state[kind] = self._files[shard].get_tensor(name)
        return state

    def _any_owner(self, pieces: Sequence[Piece]) -> tuple[int, int]:
        """(shard, master) that holds something of the pieces; a master without any is padding alone."""
        for piece in pieces:
            for _, shard, master in self._found[piece.weight]:
                return shard, master
        return 0, 0

    def _assembled(self, name: str, pieces: Sequence[Piece], like: Tensor) -> Tensor:
        """A tensor of a new master from the saved ones; ``name`` with a place for the saved master's number."""
        made: Tensor | None = None
        for piece in pieces:
            missing = piece.size
            for saved, shard, master in self._found[piece.weight]:
                first = max(piece.start, saved.start)
                last = min(piece.start + piece.size, saved.start + saved.size)
                if first >= last:
                    continue
                source = self._files[shard].get_tensor(name.format(master)).view(-1)
                if made is None:
                    made = torch.zeros(like.numel(), dtype=source.dtype)
                to, begin = piece.offset + first - piece.start, saved.offset + first - saved.start
                made[to : to + last - first] = source[begin : begin + last - first]
                missing -= last - first
            if missing:
                where = self._shards[0].path.parent
                lacks = f"{missing} of {piece.size} values of {piece.weight} are not in it"
                raise UserError(f"{where}: {lacks}: it is a checkpoint of another model")
        return (torch.zeros(like.numel()) if made is None else made).view(like.shape)
