"""A rank's state on disk: rank-N.safetensors holds its tensors, rank-N.json everything else.

Nothing in the files depends on a module path or class name. Tensors are bit-exact, and numbers too: JSON keeps the
digits that a float needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from contracts.errors import UserError, first_line
from contracts.version import VERSION, validate_format

FORMAT = 1
"""Raised whenever files of the format before can't be read any more."""

Layout = dict[str, int | str]
"""What a run must have in common with a checkpoint to go on from it, by config key."""


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


def save(folder: Path, rank: int, layout: Layout, state: RankState) -> None:
    """Write the files of rank ``rank``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _by_name(state)
    manifest = {
        "format": FORMAT,
        "program": VERSION,
        "layout": layout,
        "steps": state.steps,
        "reference_version": state.reference_version,
        "optimizer_numbers": [
            {name: value for name, value in of_master.items() if not isinstance(value, Tensor)}
            for of_master in state.optimizer
        ],
        "tensors": list(tensors),
    }
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / f"rank-{rank}.safetensors",
    )
    (folder / f"rank-{rank}.json").write_text(json.dumps(manifest, indent=1))


def load(folder: Path, rank: int, layout: Layout) -> RankState:
    """What ``save`` wrote. Tensors are on the host and mapped from the file: copy what is to stay.

    Raises:
        UserError: a file is missing, damaged, or of another format or layout.
    """
    try:
        return _load(folder, rank, layout)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{folder}/rank-{rank}.json: damaged ({reason}); resume from another checkpoint") from error


def _load(folder: Path, rank: int, layout: Layout) -> RankState:
    manifest = _read_manifest(folder, rank)
    saved = manifest["layout"]
    if saved != layout:
        was = ", ".join(f"{k} {saved.get(k)}" for k in layout if saved.get(k) != layout[k])
        now = ", ".join(f"{k} {v}" for k, v in layout.items() if saved.get(k) != v)
        raise UserError(f"{folder}: saved with {was}; this run has {now}; resume with what it was saved with")
    tensors = _read_tensors(folder / f"rank-{rank}.safetensors", manifest["tensors"])
    return RankState(
        steps=manifest["steps"],
        masters=list(_under(tensors, "masters.").values()),
        optimizer=[
            numbers | _under(tensors, f"optimizer.{master}.")
            for master, numbers in enumerate(manifest["optimizer_numbers"])
        ],
        ema=list(_under(tensors, "ema.").values()),
        reference=list(_under(tensors, "reference.").values()),
        reference_version=manifest["reference_version"],
        generators=_under(tensors, "generators."),
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
        raise UserError(f"{path}: missing; the checkpoint was made with fewer learner.ranks, or is not on this node")
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
