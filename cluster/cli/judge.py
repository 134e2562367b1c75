"""``sapo judge``: two models' responses compared by a third."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.cli.arguments import DryRun
from cluster.cli.output import Output
from contracts.errors import UserError

KEY = "OPENAI_API_KEY"


def judge(
    ours: Annotated[Path, typer.Argument(help="Responses of the model, as `sapo eval --write alpaca-eval` has them.")],
    theirs: Annotated[Path, typer.Argument(help="Responses of the model that it is compared with.")],
    judge_url: Annotated[str, typer.Option(help="Server with OpenAI's API, such as http://localhost:8000/v1.")],
    judge_model: Annotated[str, typer.Option(help="Name of the judge on that server.")],
    judge_request: Annotated[
        str, typer.Option(help="More fields of each request, as JSON; null leaves one of ours out.")
    ] = "{}",
    judgements: Annotated[Path, typer.Option(help="File that keeps every judgement.")] = Path("judgements.jsonl"),
    concurrency: Annotated[int, typer.Option(min=1, help="Requests that are open at a time.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Win rate of one model against another, by a judge that sees every pair of responses in both orders.

    The API key is taken from the environment variable OPENAI_API_KEY. Judgements are kept as they come: the same
    command goes on where it was interrupted.
    """
    from cluster.evaluation.alpaca_eval import read_generations
    from cluster.judging.compare import comparisons, pair, summarise
    from cluster.judging.judge import Judge, Refusal
    from cluster.judging.judgements import Judgements

    request = _object(judge_request)
    pairing = pair(read_generations(ours), read_generations(theirs))
    asked = comparisons(pairing)
    if dry_run:
        print(
            f"{len(pairing.ours)} prompts in both orders: up to {len(asked)} requests to {judge_model} at {judge_url}"
        )
        return
    kept = Judgements(judgements)
    try:
        said = Judge(judge_url, judge_model, os.environ.get(KEY), kept, request).compare(asked, concurrency)
    finally:
        kept.close()
    result = summarise(pairing, said)
    refusal = next((answer for answer in said if isinstance(answer, Refusal)), None)
    if as_json:
        print(json.dumps(asdict(result)))
        return
    table = Table(title=f"{ours} against {theirs}, by {judge_model} (± one standard error)")
    for head in ("win rate", "length-controlled", "wins / ties / losses", "characters", "shown first wins"):
        table.add_column(head)
    table.add_row(
        str(result.win_rate),
        str(result.length_controlled),
        f"{result.wins} / {result.ties} / {result.losses}",
        f"{result.characters:.0f} : {result.other_characters:.0f}",
        f"{result.first_place:.3f}",
    )
    Output().print(table)
    if result.unpaired:
        print(f"{result.unpaired} responses left out: the other file has none to their instruction")
    if result.left_out:
        why = f"; the server rejects a request: {refusal.reason}" if refusal else f"; see {judgements}"
        print(f"{result.left_out} prompts left out: no verdict that can be read in both orders{why}")


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--judge-request: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError('--judge-request: a JSON object is expected, such as {"max_tokens": 2048}')
    return value
