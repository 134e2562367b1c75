"""``sapo eval``: models scored by a check of the user's own or by tasks, or their responses in a file for judges."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from cluster.cli.arguments import DryRun
from cluster.cli.output import Output
from cluster.config.loading import load_config
from cluster.config.paths import resolve_paths
from cluster.config.sections import DataConfig
from contracts.errors import UserError

SAMPLES = 4
TEMPERATURE = 0.7
"""Of the sampled responses that a check scores."""
MAX_TOKENS = {"check": 256, "write": 1024}


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Folders or hub names of models, compared in one table.")],
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL with `messages`, `instruction` or `prompt`; for mt-bench its questions.")
    ] = None,
    check: Annotated[
        str | None, typer.Option(help="`module:function` from (prompt, response) to a number or bool.")
    ] = None,
    write: Annotated[
        Literal["alpaca-eval", "mt-bench"] | None,
        typer.Option(help="Write one response to each prompt, in this format, to --out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --write: the file.")] = None,
    name: Annotated[str | None, typer.Option(help="With --write: the model's name in the file.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks, groups or tags of lm-evaluation-harness and folders of task files, separated by commas. "
            "A file of responses may stand in place of a model."
        ),
    ] = None,
    few_shots: Annotated[
        int | None, typer.Option(min=0, help="With --tasks: examples before each question (default: the task's).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --tasks: questions of each task (default: all).")
    ] = None,
    chat_template: Annotated[
        bool | None,
        typer.Option(
            help="With --tasks: questions as turns of a conversation (default: if the tokenizer has a template)."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help=f"With --check: sampled responses per prompt (default {SAMPLES}).")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help=f"Of sampled responses: {TEMPERATURE:g} with --check. Files are written greedily without it, and "
            "mt-bench at its own temperatures.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Longest response: {MAX_TOKENS['check']} with --check, {MAX_TOKENS['write']} with --write."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of a run: conversations are rendered as its section `data` says."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Score models: with a check of your own on your prompts, or on tasks of lm-evaluation-harness. Or write their
    responses to a file for others to judge."""
    mode = _only({"check": check, "write": write, "tasks": tasks})
    _reject_foreign(
        mode,
        {
            "prompts": (prompts, ("check", "write")),
            "out": (out, ("write",)),
            "name": (name, ("write",)),
            "samples": (samples, ("check",)),
            "temperature": (temperature, ("check", "write")),
            "max-tokens": (max_tokens, ("check", "write")),
            "few-shots": (few_shots, ("tasks",)),
            "limit": (limit, ("tasks",)),
            "chat-template": (chat_template, ("tasks",)),
            "config": (config, ("check", "write")),
        },
    )
    if tasks is not None:
        _score(models, tasks, few_shots, limit, chat_template, as_json=as_json, dry_run=dry_run)
        return
    if prompts is None:
        raise UserError(f"--{mode} needs --prompts FILE")
    longest = max_tokens or MAX_TOKENS[mode]
    data = resolve_paths(load_config(config)).data if config else None
    if write:
        _write(
            models,
            prompts,
            out,
            write,
            name=name,
            temperature=temperature,
            max_tokens=longest,
            data=data,
            dry_run=dry_run,
        )
        return
    assert check is not None
    count, heat = samples or SAMPLES, TEMPERATURE if temperature is None else temperature
    if dry_run:
        from cluster.evaluation.dry_run import dry_evaluation

        for model in models:
            print(dry_evaluation(model, prompts, check, samples=count, max_tokens=longest, data=data))
        return
    from cluster.evaluation.evaluate import evaluate as run

    results = {
        model: run(model, prompts, check, samples=count, temperature=heat, max_tokens=longest, data=data)
        for model in models
    }
    if as_json:
        print(json.dumps({model: asdict(result) for model, result in results.items()}))
        return
    table = Table(title=f"{check} on {prompts} (± one standard error)")
    for head in ("model", "greedy", f"sampled at {heat:g}"):
        table.add_column(head)
    for model, result in results.items():
        table.add_row(model, str(result.greedy), str(result.sampled))
    Output().print(table)


def _only(modes: dict[str, Any]) -> str:
    """The one that is given."""
    given = [name for name, value in modes.items() if value is not None]
    if len(given) != 1:
        what = " and ".join(f"--{name}" for name in given) or "nothing"
        raise UserError(f"one of {', '.join(f'--{name}' for name in modes)} says what to do; {what} is given")
    return given[0]


def _reject_foreign(mode: str, options: dict[str, tuple[Any, tuple[str, ...]]]) -> None:
    """What is given and would change nothing. ``options``: value, and the modes that use it."""
    for name, (value, modes) in options.items():
        if value is not None and mode not in modes:
            raise UserError(f"--{name} goes with {' and '.join(f'--{other}' for other in modes)}, not with --{mode}")


def _score(
    models: list[str],
    tasks: str,
    few_shots: int | None,
    limit: int | None,
    chat_template: bool | None,
    *,
    as_json: bool,
    dry_run: bool,
) -> None:
    from cluster.evaluation.tasks import score_on_tasks, validate

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if dry_run:
        for model in models:
            validate(model, names)
        print(f"{', '.join(models)}: to be scored on {', '.join(names)} by lm-evaluation-harness")
        return
    results = {
        model: score_on_tasks(model, names, few_shots=few_shots, limit=limit, chat_template=chat_template)
        for model in models
    }
    if as_json:
        figures = {model: {name: asdict(f) for name, f in scores.figures.items()} for model, scores in results.items()}
        print(json.dumps(figures))
        return
    table = Table(title="lm-evaluation-harness (± one standard error)")
    for head in ("task", "n", *models):
        table.add_column(head)
    for name in dict.fromkeys(name for scores in results.values() for name in scores.figures):
        row = [scores.figures.get(name) for scores in results.values()]
        count = next((str(figure.samples) for figure in row if figure and figure.samples), "")
        table.add_row(name, count, *(str(figure) if figure else "" for figure in row))
    Output().print(table)
    for model, scores in results.items():
        print(f"{model}: questions {'as turns of a conversation' if scores.chat_template else 'as plain text'}")
        for note in scores.notes:
            print(f"{model}: lm-evaluation-harness: {note}")


def _write(
    models: list[str],
    prompts: Path,
    out: Path | None,
    kind: Literal["alpaca-eval", "mt-bench"],
    *,
    name: str | None,
    temperature: float | None,
    max_tokens: int,
    data: DataConfig | None,
    dry_run: bool,
) -> None:
    from cluster.evaluation.generation_files import dry_writing, write_responses

    if out is None:
        raise UserError("--write needs --out FILE")
    if len(models) > 1:
        raise UserError(f"--write takes one model, {len(models)} are given")
    (model,) = models
    if dry_run:
        print(dry_writing(model, prompts, out, kind, max_tokens=max_tokens, data=data))
        return
    called = name or model
    count = write_responses(
        model, prompts, out, kind, name=called, temperature=temperature, max_tokens=max_tokens, data=data
    )
    print(f"wrote {count} responses of {called} to {out}")
