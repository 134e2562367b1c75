"""``sapo report``: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/NAME.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default: report.html in the run folder.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file to compare the config with; default: the defaults.")
    ] = None,
) -> None:
    """Write a page with a run's curves, times, pairs, events and config. It needs no network to be read."""
    from cluster.reports.page.html import write_page
    from cluster.reports.page.report import report_page

    page = report_page(run, recipe)
    out = out or run / "report.html"
    write_page(page, out)
    print(f"wrote {out}")
