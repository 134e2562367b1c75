"""A rank's state on disk: rank-N.safetensors holds its tensors, rank-N.json everything else.

A group with other ranks or another ZeRO stage can read it: the files say where each weight's values are. Nothing in the
files depends on a module path or class name. Tensors are bit-exact, and numbers too: JSON keeps the
digits that a float needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from contracts.background import flush
from contracts.errors import UserError, first_line, named
from contracts.version import VERSION, validate_format
from learner.zero.pieces import Piece
from learner.zero.resharding import Resharding, SavedShard
from learner.zero.tensor_files import TensorFile

FORMAT = 2
"""Raised whenever files of the format before can't be read any more."""


@dataclass(frozen=True)
class Layout:
    """How a group's state is cut into ranks."""

    ranks: int
    zero_stage: int
    optimizer: str
    """Its name; another one's state is of no use."""
    pieces: list[list[Piece]]
    """Of this rank, by master."""


@dataclass(frozen=True)
class RankState:
    """Everything that a bit-exact continuation of one rank needs."""

    steps: int
    """Optimizer steps done."""
    masters: list[Tensor]
    """fp32: the rank's own shard of the weights."""
    optimizer: list[dict[str, Any]]
    """State of each master: tensors (step counters too) and numbers, by the optimizer's names."""
    ema: list[Tensor]
    """fp32, the shapes of ``masters``."""
    reference: list[Tensor]
    """The reference's copy in the model's dtype; empty where it keeps none."""
    reference_version: int
    generators: dict[str, Tensor]
    """State of the random generators, uint8 [bytes] each: ``host``, and ``device`` on a GPU."""

    def on_host(self) -> RankState:
        """A copy that later steps do not touch."""
        return replace(
            self,
            masters=[on_host(tensor) for tensor in self.masters],
            optimizer=[
                {name: on_host(value) if isinstance(value, Tensor) else value for name, value in of_master.items()}
                for of_master in self.optimizer
            ],
            ema=[on_host(tensor) for tensor in self.ema],
            reference=[on_host(tensor) for tensor in self.reference],
        )


def on_host(tensor: Tensor) -> Tensor:
    """A copy in host memory."""
    return tensor.detach().to("cpu", copy=True)


def save(folder: Path, rank: int, layout: Layout, state: RankState) -> None:
    """Write the files of rank ``rank``, durably. The tensors may be on any device; little is held in host memory at a
    time."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _by_name(state)
    manifest = {
        "format": FORMAT,
        "program": VERSION,
        "layout": asdict(layout),
        "steps": state.steps,
        "reference_version": state.reference_version,
        "optimizer_numbers": [
            {name: value for name, value in of_master.items() if not isinstance(value, Tensor)}
            for of_master in state.optimizer
        ],
        "tensors": list(tensors),
    }
    announced = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with TensorFile(folder / f"rank-{rank}.safetensors", announced) as file:
        for name, tensor in tensors.items():
            file.put(name, tensor)
    (folder / f"rank-{rank}.json").write_text(json.dumps(manifest, indent=1))
    for kind in ("safetensors", "json"):
        flush(folder / f"rank-{rank}.{kind}")


def load(folder: Path, rank: int, layout: Layout, masters: Sequence[Tensor]) -> RankState:
    """What a group has written, for rank ``rank`` of this group. Tensors are on the host, and mapped from the files
    where the layout is the same: copy what is to stay.

    Args:
        masters: of the shapes that are wanted; the values are not read.

    Raises:
        UserError: a file is missing, damaged, or of another format, optimizer or model.
    """
    with _naming_damage(folder, rank):
        return _load(folder, rank, layout, masters)


def validate_optimizer(folder: Path, optimizer: str) -> None:
    """Check whose state it is; the rest can be converted.

    Raises:
        UserError: the optimizer was another one, or the file is missing, damaged, or of another format.
    """
    with _naming_damage(folder, 0):
        saved = _read_manifest(folder, 0)["layout"]["optimizer"]
    if saved != optimizer:
        now = f"this run has optimizer.name {optimizer}"
        raise UserError(f"{folder}: saved with optimizer.name {saved}; {now}; resume with what it was saved with")


@contextmanager
def _naming_damage(folder: Path, rank: int) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        reason = named(error)
        raise UserError(f"{folder}/rank-{rank}.json: damaged ({reason}); resume from another checkpoint") from error


def _load(folder: Path, rank: int, layout: Layout, masters: Sequence[Tensor]) -> RankState:
    validate_optimizer(folder, layout.optimizer)
    saved_ranks: int = _read_manifest(folder, 0)["layout"]["ranks"]
    manifest = _read_manifest(folder, rank % saved_ranks)
    path = folder / f"rank-{rank % saved_ranks}.safetensors"
    tensors = _read_tensors(path, manifest["tensors"])
    if manifest["layout"] == json.loads(json.dumps(asdict(layout))):
        optimizer = [
            numbers | _under(tensors, f"optimizer.{master}.")
            for master, numbers in enumerate(manifest["optimizer_numbers"])
        ]
        parts = {part: list(_under(tensors, f"{part}.").values()) for part in ("masters", "ema", "reference")}
    else:
        manifests = [_read_manifest(folder, number) for number in range(saved_ranks)]
        saved = Resharding(
            [
                SavedShard(
                    folder / f"rank-{number}.safetensors",
                    [[Piece(*piece) for piece in pieces] for pieces in of_rank["layout"]["pieces"]],
                    of_rank["optimizer_numbers"],
                )
                for number, of_rank in enumerate(manifests)
            ]
        )
        optimizer = saved.optimizer(layout.pieces, masters)
        parts = {part: saved.values(part, layout.pieces, masters) for part in ("masters", "ema", "reference")}
    return RankState(
        steps=manifest["steps"],
        optimizer=optimizer,
        reference_version=manifest["reference_version"],
        generators=_under(tensors, "generators."),
        **parts,
    )


def _by_name(state: RankState) -> dict[str, Tensor]:
    """All tensors; those of a list in its order."""
    named = {
        f"{part}.{i}": tensor
        for part in ("masters", "ema", "reference")
        for i, tensor in enumerate(getattr(state, part))
    }
    for master, of_master in enumerate(state.optimizer):
        named |= {f"optimizer.{master}.{name}": v for name, v in of_master.items() if isinstance(v, Tensor)}
    return named | {f"generators.{name}": generator for name, generator in state.generators.items()}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read_manifest(folder: Path, rank: int) -> dict[str, Any]:
    path, unnumbered = folder / f"rank-{rank}.json", folder / f"rank-{rank}.pt"
    if not path.is_file() and unnumbered.is_file():  # torch.save's, from before format 1
        validate_format(str(unnumbered), None, FORMAT)
    if not path.is_file():
        raise UserError(f"{path}: missing; the checkpoint is not whole, or not on this node")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); resume from another checkpoint") from error
    validate_format(str(path), manifest.get("format"), FORMAT)
    return manifest


def _read_tensors(path: Path, names: list[str]) -> dict[str, Tensor]:
    """The file's tensors in the order of ``names``."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); resume from another checkpoint") from error
    missing = [name for name in names if name not in found]
    if missing:
        lacks = f"lacks {len(missing)} of {len(names)} tensors, the first is {missing[0]}"
        raise UserError(f"{path}: damaged ({lacks}); resume from another checkpoint")
    return {name: found[name] for name in names}
