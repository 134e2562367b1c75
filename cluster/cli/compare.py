"""``sapo compare``: runs side by side on one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, two or more.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("compare.html"),
) -> None:
    """Write a page with several runs side by side: what differs in their configs, curves, values."""
    from cluster.reports.page.compare import compare_page
    from cluster.reports.page.html import write_page

    write_page(compare_page(runs), out)
    print(f"wrote {out}")
