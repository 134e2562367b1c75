"""``sapo data``: what becomes of a run's data, without starting anything."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.arguments import ConfigFile, Overrides
from cluster.config.loading import load_config


def data(
    config: ConfigFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 3,
) -> None:
    """Show what a run would learn from: rows used and dropped by reason, rendered rows, tokens, lengths."""
    from cluster.config.paths import resolve_paths
    from cluster.data.preview import length_lines, row_lines
    from cluster.run.inputs import count_steps, read_inputs

    run = resolve_paths(load_config(config, overrides or []))
    inputs = read_inputs(run)
    for line in (*inputs.report, inputs.ends, f"{count_steps(run, inputs)} steps of {run.learner.batch_size} rows"):
        print(line)
    table, tokenizer = inputs.table, inputs.tokenizer
    if not len(table):  # a recording holds batches
        return
    for line in length_lines(table):
        print(line)
    for number in range(min(rows, len(table))):
        for line in row_lines(number, table[number], tokenizer):
            print(line)
