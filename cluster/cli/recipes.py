"""``sapo recipes``: the recipes that come with the program, listed or copied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cluster.cli.output import Output
from cluster.config.recipes import copy_recipes
from cluster.config.recipes import recipes as all_recipes


def recipes(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes to copy; none: list all.")] = None,
    to: Annotated[Path, typer.Option("--to", help="Folder to copy to; it is made.")] = Path("configs"),
) -> None:
    """List the recipes that come with the program, or copy some with the chat templates that they use.

    Nothing is overwritten.
    """
    if names:
        for path in copy_recipes(names, to):
            print(f"wrote {path}")
        return
    table = Table(box=None, pad_edge=False)
    for head in ("recipe", "GPUs", "what it is"):
        table.add_column(head, overflow="fold")
    for recipe in all_recipes():
        table.add_row(recipe.name, recipe.gpus, recipe.purpose)
    Output().print(table)
