"""Sphinx's directive ``generated``: tables that are made from the program itself when the site is built.

A page has ``{generated} config``, ``cli`` or ``recipes`` in a fenced block. Nothing generated lies in the repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import typer
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click
from typer.main import get_command

from cluster.cli.app import app
from cluster.cli.config import fields
from cluster.config.recipes import recipes
from cluster.config.run_config import RunConfig


def config_tables() -> Iterator[str]:
    """A table for each section of the config, in the order of the file."""
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for name, default, meaning in fields(RunConfig):
        section = name.partition(".")[0] if "." in name else ""
        sections.setdefault(section, []).append((name, default, meaning))
    for section, rows in sections.items():
        yield f"## {section or 'The run'}\n"
        if section:
            kind = RunConfig.model_fields[section].annotation
            yield f"{(kind.__doc__ or '').strip()}\n"
        yield "| field | default | meaning |\n|---|---|---|"
        yield from (f"| `{name}` | `{default}` | {_cell(meaning)} |" for name, default, meaning in rows)
        yield ""


def command_line() -> Iterator[str]:
    """What ``--help`` says, of every command."""
    group = get_command(app)
    yield get_docs_for_click(obj=group, ctx=typer.Context(group), name="sapo").partition("\n")[2]


def recipe_table() -> Iterator[str]:
    yield "| recipe | GPUs | what it is |\n|---|---|---|"
    yield from (f"| `{recipe.name}` | {recipe.gpus} | {_cell(recipe.purpose)} |" for recipe in recipes())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


WRITERS: dict[str, Callable[[], Iterator[str]]] = {
    "config": config_tables,
    "cli": command_line,
    "recipes": recipe_table,
}


class Generated(Directive):
    """Markdown of the function that its argument names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = "\n".join(WRITERS[self.arguments[0]]())
        self.state.nested_parse(text.splitlines(), self.content_offset, parent := nodes.section())
        return parent.children


def setup(site: Sphinx) -> dict[str, bool]:
    site.add_directive("generated", Generated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
