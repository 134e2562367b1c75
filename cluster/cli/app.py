"""The command line: ``sapo train | sft | eval | generate | actors | config``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.config.run_config import ClusterConfig, RunConfig, load_config
from cluster.config.validation_message import inner_section
from cluster.storage.run_folder import as_yaml
from contracts.errors import UserError
from contracts.section import Section

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Align a language model from supervised data alone (SAPO, arXiv 2405.20830): a moving average of the model
rewrites segments of your responses, and the model learns to prefer the originals.

**First run:** `python -m demo data`, `sapo sft configs/demo-sft.yaml`, `sapo train configs/demo.yaml`.

**Your own:** copy configs/demo.yaml, set `model.path` and `data.path`; `sapo config --explain` explains every field.
Any field can be overridden on the command line: `sapo train my.yaml learner.steps=500 optimizer.lr=1e-6`.

**On a cluster:** `ray job submit --working-dir . -- python -m cluster train my.yaml`.""",
)

ConfigFile = Annotated[Path, typer.Argument(help="YAML file of the run.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Fields to change: key.sub=value …")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")]


@app.command()
def train(
    config: ConfigFile, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False
) -> None:
    """Train as CONFIG says: SAPO, SFT, offline DPO/ORPO on given pairs, or a replay of recorded pairs."""
    _train(load_config(config, overrides or []), resume, overwrite)


@app.command()
def sft(config: ConfigFile, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Supervised fine-tuning: the starting model for SAPO. Sets method, objective and reference accordingly."""
    forced = ["method=sft", "objective.name=sft", "reference.mode=none"]
    _train(load_config(config, [*(overrides or []), *forced]), resume, overwrite)


@app.command(name="eval")
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Folders or hub names of models, compared in one table.")],
    prompts: Annotated[Path, typer.Option(help="JSONL with `messages` or `prompt`.")],
    check: Annotated[str, typer.Option(help="`module:function` from (prompt, response) to a number or bool.")],
    samples: Annotated[int, typer.Option(min=1, help="Sampled responses per prompt.")] = 4,
    temperature: Annotated[float, typer.Option(min=0.0, help="Temperature of the sampled ones.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score models on prompts with a check of your own, greedily and sampled."""
    from dataclasses import asdict

    from cluster.evaluation.evaluate import evaluate as run

    results = {
        m: run(m, prompts, check, samples=samples, temperature=temperature, max_tokens=max_tokens) for m in models
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


@app.command()
def generate(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")] = Path("pairs.parquet"),
    batches: Annotated[int, typer.Option(min=1, help="Batches of learner.batch_size pairs.")] = 10,
) -> None:
    """Write pairs with the starting model, without a learner. Train on them: `method=replay data.path=FILE`."""
    from cluster.run.generate import generate as run

    written = run(load_config(config, overrides or []), out, batches)
    print(f"wrote {written} pairs in {batches} batches to {out}")


@app.command()
def actors(
    change: Annotated[int, typer.Argument(help="Actors to add; negative: to let go.")],
    run: Annotated[str, typer.Option(help="Name of the run.")],
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: RAY_ADDRESS.")] = None,
) -> None:
    """Add generation actors to a run that is going on, or let some go."""
    from cluster.workers.control import change_actors

    change_actors(run, change, ClusterConfig(address=address))
    print(f"asked run {run} for {change:+d} actor(s)")


@app.command()
def config(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run.")] = None,
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every field, its default and meaning.")] = False,
) -> None:
    """Print the resolved configuration, or with --explain what every field means."""
    if explain or config is None:
        table = Table(show_lines=False)
        for head in ("field", "default", "meaning"):
            table.add_column(head, overflow="fold")
        for name, default, meaning in fields(RunConfig):
            table.add_row(name, default, meaning)
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        return
    print(as_yaml(load_config(config, overrides or [])), end="")


def fields(section: type[Section], prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted name, default, meaning) of every field below ``section``."""
    rows = []
    for name, field in section.model_fields.items():
        inner = inner_section(field)
        if inner is not None:
            rows.extend(fields(inner, f"{prefix}{name}."))
        else:
            default = "required" if field.is_required() else json.dumps(field.default)
            rows.append((prefix + name, default, field.description or ""))
    return rows


def _train(run: RunConfig, resume: bool, overwrite: bool) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vllm is imported
    from cluster.config.job_paths import anchored, checkout
    from cluster.run.loop import train as start

    try:
        run = anchored(run, Path.cwd(), checkout())
        result = start(run, resume=resume, overwrite=overwrite)
    except KeyboardInterrupt:
        print("sapo: interrupted; --resume goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(130)
    print(f"policy: {result.policy}\naverage: {result.ema}\nmetrics: {result.folder / 'metrics.jsonl'}")


def main() -> None:
    """Run the command line; what the user must mend is one line on stderr and exit status 2. Other errors are bugs and
    keep their traceback."""
    # A check or an objective of the user's own lies beside the configuration; Ray hands the path on to the ranks.
    sys.path.append(os.getcwd())
    try:
        app()
    except UserError as error:
        print(f"sapo: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
