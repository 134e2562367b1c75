"""AlpacaEval's generation files: a JSON array of objects with instruction, output and generator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.data.json_rows import json_rows
from contracts.errors import UserError


@dataclass(frozen=True)
class Generation:
    """One response, with the keys that AlpacaEval reads."""

    dataset: str
    instruction: str
    output: str
    generator: str
    """Name of the model."""


def write_generations(path: Path, generations: Sequence[Generation]) -> None:
    """Raises:
    UserError: the file can't be written.
    """
    try:
        path.write_text(json.dumps([asdict(g) for g in generations], indent=2, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror}") from error


def read_generations(path: Path) -> list[Generation]:
    """An array, or one object a line.

    Raises:
        UserError: the file can't be read, is empty, or an entry has no instruction or output.
    """
    found = []
    for number, row in json_rows(path, "generations"):
        for key in ("instruction", "output"):
            if not isinstance(row.get(key), str):
                raise UserError(
                    f"generations {path}:{number}: {key} as text is expected; found the keys {', '.join(row)}"
                )
        dataset, generator = (str(row.get(key) or "") for key in ("dataset", "generator"))
        found.append(Generation(dataset, row["instruction"], row["output"], generator or path.stem))
    if not found:
        raise UserError(f"generations {path}: nothing in it")
    return found
