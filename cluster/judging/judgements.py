"""The file of judgements: each is kept when it is made, and asked for once."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any

import xxhash

from cluster.judging.verdict import Verdict
from cluster.storage.json_lines import JsonLines, read_objects
from contracts.errors import UserError


def key_of(request: dict[str, Any]) -> str:
    """What a judgement is found by: the whole request, model and settings included, 128 bits in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(json.dumps(request, sort_keys=True).encode())


class Judgements:
    """Verdicts by the key of their request; several threads may use it."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A line that a killed process left torn is cut off.

        Raises:
            UserError: a line is no judgement.
        """
        if path.is_dir():
            raise UserError(f"--judgements {path}: is a folder; name a file")
        self._lock = Lock()
        self._verdicts = {}
        for line in read_objects(path, "key", "verdict"):
            try:
                self._verdicts[str(line["key"])] = Verdict(line["verdict"])
            except ValueError as error:
                raise UserError(f"{path}: {error}; give another --judgements file") from error
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")
            if whole[2]:
                path.write_bytes(whole[0] + whole[1])
        self._file = JsonLines(path)

    def get(self, key: str) -> Verdict | None:
        return self._verdicts.get(key)

    def add(self, key: str, verdict: Verdict, answer: str) -> None:
        """On disk when this returns.

        Raises:
            UserError: it can't be written.
        """
        with self._lock:
            try:
                self._file.write({"key": key, "verdict": verdict, "answer": answer})
            except OSError as error:
                raise UserError(f"{error.filename}: can't be written: {error.strerror}") from error
            self._verdicts[key] = verdict

    def close(self) -> None:
        self._file.close()
