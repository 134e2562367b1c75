"""A file with one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.storage.appended import AppendedFile
from contracts.background import write_whole
from contracts.errors import UserError


class JsonLines:
    """Appends records."""

    def __init__(self, path: Path) -> None:
        """The file is made by the first ``write``."""
        self._file = AppendedFile(path)

    def write(self, record: dict[str, Any]) -> None:
        """Append one line.

        Raises:
            ValueError: a value is one that JSON does not know, as NaN.
            OSError: the disk did not take it; a later call will try again.
        """
        self._file.write((json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(step, line) of every whole line; a torn last line, which a killed run leaves, is no line. Empty without a file.

    Raises:
        UserError: a line is no object with a step.
    """
    found = []
    for number, line in _whole_lines(path):
        try:
            found.append((int(json.loads(line)["step"]), line))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: damaged: no JSON object with a step; mend or delete the line") from error
    return found


def read_objects(path: Path, *needed: str) -> list[dict[str, Any]]:
    """Every whole line as an object; a torn last line is none. Empty without a file.

    Args:
        needed: keys that each must have.

    Raises:
        UserError: a line is no object with these keys.
    """
    found = []
    for number, line in _whole_lines(path):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: damaged: no JSON object; mend or delete the line") from error
        if not isinstance(record, dict) or not record.keys() >= set(needed):
            keys = f" with {', '.join(needed)}" if needed else ""
            raise UserError(f"{path}:{number}: damaged: no JSON object{keys}; mend or delete the line")
        found.append(record)
    return found


def _whole_lines(path: Path) -> list[tuple[int, str]]:
    if not path.exists():
        return []
    return list(enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], 1))


def drop_lines_after(path: Path, step: int) -> None:
    """Drop the lines after ``step``, as a resumed run writes them again, and a torn last line.

    Raises:
        UserError: a line is no object with a step, or the file can't be written. It is as it was then.
    """
    if not path.exists():
        return
    kept = "".join(f"{line}\n" for at, line in read_lines(path) if at <= step)
    if len(kept.encode()) == path.stat().st_size:
        return
    try:
        write_whole(path, kept)
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror}") from error
