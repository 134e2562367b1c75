"""Puts a page together: template, style, script, the figures, and plotly.js itself. It needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2

from cluster.reports.page.figures import Figure
from contracts.errors import UserError

ROOM = Path(__file__).parent


def render(template: str, figures: Sequence[Figure], **values: Any) -> str:
    """A whole page.

    Args:
        template: a file of this room.
        figures: all that the page draws; the template says where, by their ids.
        values: what else the template shows.

    Raises:
        UserError: plotly is not installed.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOM),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"embedded": embedded, "zip": zip}
    return templates.get_template(template).render(
        style=(ROOM / "page.css").read_text(encoding="utf-8"),
        script=(ROOM / "page.js").read_text(encoding="utf-8"),
        plotly=plotly_script(),
        drawings=[figure.drawn for figure in figures],
        **values,
    )


def embedded(value: Any) -> str:
    """JSON that may stand in a ``script`` element: no text of a run's can end it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plotly_script() -> str:
    """plotly.js as the Python package ships it. The package itself is not imported: only its script is wanted.

    Raises:
        UserError: it is not installed.
    """
    package = find_spec("plotly")
    places = package.submodule_search_locations if package else None
    script = Path(places[0]) / "package_data" / "plotly.min.js" if places else None
    if script is None or not script.exists():
        raise UserError("plotly: not installed, and the page draws with it: pip install plotly")
    return script.read_text(encoding="utf-8")


def write_page(page: str, out: Path) -> None:
    """Raises:
    UserError: the file can't be written.
    """
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: can't be written: {error.strerror}") from error
