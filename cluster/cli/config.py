"""``sapo config``: a run's resolved configuration, or what every field means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, get_origin

import typer
from rich.table import Table

from cluster.cli.arguments import Overrides
from cluster.cli.output import Output
from cluster.config.loading import load_config
from cluster.config.run_config import RunConfig
from cluster.config.validation_message import inner_section
from cluster.storage.run_folder import as_yaml
from contracts.section import Section


def config(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run.")] = None,
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every field, its default and meaning.")] = False,
) -> None:
    """Print the resolved configuration, and reject it if a path in it is not there; or explain every field.

    What is in model and data is checked by --dry-run of train, sft and generate.
    """
    if explain or config is None:
        table = Table(show_lines=False)
        for head in ("field", "default", "meaning"):
            table.add_column(head, overflow="fold")
        for name, default, meaning in fields(RunConfig):
            table.add_row(name, default, meaning)
        Output().print(table)
        return
    loaded = load_config(config, overrides or [])
    print(as_yaml(loaded), end="")
    from cluster.config.paths import resolve_paths
    from cluster.run.absent import reject_absent_paths
    from cluster.storage.run_folder import RunFolder

    resolved = resolve_paths(loaded)
    reject_absent_paths(resolved)
    RunFolder(resolved, resume=False, overwrite=True).validate_writable()


def fields(section: type[Section], prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted name, default, meaning) of every field below ``section``."""
    rows = []
    for name, field in section.model_fields.items():
        inner = inner_section(field)
        listed = get_origin(field.annotation) is tuple
        if inner is not None:
            rows.extend(fields(inner, f"{prefix}{name}.0." if listed else f"{prefix}{name}."))
        if inner is None or listed:
            default = "required" if field.is_required() else json.dumps(field.default, default=str)
            rows.append((prefix + name, default, field.description or ""))
    return rows
