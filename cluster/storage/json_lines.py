"""A file with one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends records; each is on disk when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one line.

        Raises:
            ValueError: a value is one that JSON does not know, as NaN.
        """
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def drop_lines_after(path: Path, step: int) -> None:
    """Drop the lines after ``step``, as a resumed run writes them again, and a torn last line."""
    if path.exists():
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # what was being written has no line end
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
