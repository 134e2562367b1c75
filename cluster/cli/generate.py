"""``sapo generate``: pairs in a file, without a learner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.arguments import ConfigFile, DryRun, Overrides
from cluster.config.loading import load_config


def generate(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="File to write, an Arrow stream.")] = Path("pairs.arrow"),
    batches: Annotated[int, typer.Option(min=1, help="Batches of learner.batch_size pairs.")] = 10,
    dry_run: DryRun = False,
) -> None:
    """Generate pairs with the starting model, without a learner. Train on them: `method=replay data.path=FILE`."""
    loaded = load_config(config, overrides or [])
    if dry_run:
        from cluster.run.dry_run import dry_generation

        print("\n".join(dry_generation(loaded, out, batches)))
        return
    from cluster.run.generate import generate as run

    pairs = run(loaded, out, batches)
    print(f"wrote {pairs} pairs in {batches} batches to {out}")
