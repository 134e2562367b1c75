"""What the processes of an engine said before they ended: vLLM raises a line that points to their output instead.

An engine on a GPU computes in processes of its own, which write where the actor writes: in its worker's files in Ray's
logs. Whoever reads the one line of a failed run is somewhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from contracts.errors import LONGEST_REASON, first_line

STREAMS = (1, 2)
"""Standard output, where vLLM logs, and standard error."""
POINTER = re.compile(r"\broot cause\b", re.IGNORECASE)
"""In each of vLLM's lines that say no more than where to look."""
ENDED = re.compile(r"failed to start|encountered a fatal error")
"""Before the traceback of what ended an engine. Others are of errors that it survived."""
LOGGED = re.compile(r"ERROR [\d-]+ [\d:]+ \[[^]]*\] (?P<error>(?:\w+\.)*\w*(?:Error|Exception)\b(?:: .+)?)$")
"""An error at the end of a traceback, as vLLM logs it line by line."""


class OwnOutput:
    """The files that this process writes its output to, from now on."""

    def __init__(self, descriptors: Sequence[int] = STREAMS) -> None:
        paths = [Path(os.path.realpath(f"/proc/self/fd/{descriptor}")) for descriptor in descriptors]
        # A terminal or a pipe can't be read again.
        self._files = [(path, path.stat().st_size) for path in dict.fromkeys(paths) if path.is_file()]

    def reason(self, error: BaseException) -> str:
        """One line: the error's, or where it only points to the output what the engine's processes logged there."""
        line = first_line(error)
        return (POINTER.search(line) and self._logged()) or line

    def _logged(self) -> str:
        for path, start in self._files:
            with path.open(errors="replace") as output:
                output.seek(start)
                lines = output.read().splitlines()
            end = max((i for i, line in enumerate(lines) if ENDED.search(line)), default=0)
            # A worker process of a tensor-parallel engine has logged it before the engine ends.
            if found := _errors(lines[end:])[:1] or _errors(lines[:end])[-1:]:
                return found[0][:LONGEST_REASON]
        return ""


def _errors(lines: Sequence[str]) -> list[str]:
    """Those logged in these lines that say something."""
    found = [match["error"].strip() for match in map(LOGGED.search, lines) if match]
    return [error for error in found if not POINTER.search(error)]
