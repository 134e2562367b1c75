"""What commands print: tables that keep their columns in a file, lines that no width breaks."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS = 160
"""Width of tables where the output is no terminal."""


class Output(Console):
    """Standard output. Texts come from users' files and paths: brackets in them are no markup."""

    def __init__(self) -> None:
        super().__init__(width=None if sys.stdout.isatty() else COLUMNS, highlight=False, markup=False, emoji=False)

    def write_line(self, text: str | Text, style: str | Style | None = None) -> None:
        """One line, however long: only the terminal itself may break it."""
        self.print(text, style=style, soft_wrap=True)
