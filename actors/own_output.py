"""What the processes of an engine said before they ended: vLLM raises a line that points to their output instead.

An engine on a GPU computes in processes of its own, which write where the actor writes: in its worker's file in Ray's
logs. Whoever reads the one line of a failed run is somewhere else.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from contracts.errors import LONGEST_REASON, first_line

POINTER = re.compile(r"\broot cause\b", re.IGNORECASE)
"""In each of vLLM's lines that say no more than where to look."""
LOGGED = re.compile(r"ERROR [\d-]+ [\d:]+ \[[^]]*\] (?P<error>(?:\w+\.)*\w*(?:Error|Exception)\b: .+)")
"""An error at the end of a traceback, as vLLM logs it line by line."""


class OwnOutput:
    """The file that this process writes its errors to, from now on."""

    def __init__(self, descriptor: int = 2) -> None:
        path = Path(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        self._path = path if path.is_file() else None  # a terminal or a pipe can't be read again
        self._start = path.stat().st_size if self._path else 0

    def reason(self, error: BaseException) -> str:
        """One line: the error's, or the first that an engine's process logged where the error only points there."""
        line = first_line(error)
        return (POINTER.search(line) and self._logged()) or line

    def _logged(self) -> str:
        if self._path is None:
            return ""
        with self._path.open(errors="replace") as output:
            output.seek(self._start)
            found = (match["error"] for match in map(LOGGED.search, output) if match)
            return next((text.strip()[:LONGEST_REASON] for text in found if not POINTER.search(text)), "")
