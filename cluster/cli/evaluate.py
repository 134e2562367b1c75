"""``sapo eval``: models compared on prompts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.cli.arguments import DryRun
from cluster.config.loading import load_config
from cluster.config.paths import resolve_paths


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Folders or hub names of models, compared in one table.")],
    prompts: Annotated[Path, typer.Option(help="JSONL with `messages` or `prompt`.")],
    check: Annotated[str, typer.Option(help="`module:function` from (prompt, response) to a number or bool.")],
    samples: Annotated[int, typer.Option(min=1, help="Sampled responses per prompt.")] = 4,
    temperature: Annotated[float, typer.Option(min=0.0, help="Temperature of the sampled ones.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of a run: conversations are rendered as its section `data` says."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Score models on prompts with a check of your own, greedily and sampled."""
    data = resolve_paths(load_config(config)).data if config else None
    if dry_run:
        from cluster.evaluation.dry_run import dry_evaluation

        for model in models:
            print(dry_evaluation(model, prompts, check, samples=samples, max_tokens=max_tokens, data=data))
        return
    from cluster.evaluation.evaluate import evaluate as run

    results = {
        model: run(model, prompts, check, samples=samples, temperature=temperature, max_tokens=max_tokens, data=data)
        for model in models
    }
    if as_json:
        print(json.dumps({model: asdict(result) for model, result in results.items()}))
        return
    table = Table(title=f"{check} on {prompts} (± one standard error)")
    for head in ("model", "greedy", f"sampled at {temperature:g}"):
        table.add_column(head)
    for model, result in results.items():
        table.add_row(model, str(result.greedy), str(result.sampled))
    Console().print(table)
