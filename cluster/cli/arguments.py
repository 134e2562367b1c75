"""Arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(help="YAML file of the run.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Fields to change: key.sub=value …")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check all that can be checked here, say what would run, start nothing.")
]
