"""What a command of the command line said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def rejection(self) -> str:
        """The one line of a rejection, without the program's name."""
        assert self.status == 2, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("sapo: ")
        return lines[0].removeprefix("sapo: ")


Sapo = Callable[..., Said]
