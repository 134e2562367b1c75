"""Runs the demo: data, a supervised start, SAPO on it, and a table of what that did. ``python -m demo data`` stops
after the data."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from buffer.errors import UserError
from cluster.config import load_config
from cluster.evaluate import Evaluation, evaluate
from demo.model import write_model
from demo.task import write_data

DATA = Path("data/demo")
TRAIN_ROWS = 20_000
SEED = 0
SAMPLES = 4
"""Sampled responses per held-out prompt."""


def make_data() -> None:
    """data/demo: train.jsonl, test.jsonl, model/ (tokenizer and architecture)."""
    write_data(DATA, TRAIN_ROWS, SEED)
    write_model(DATA / "model")


def main() -> int:
    console = Console()
    started = time.monotonic()
    make_data()
    console.print(f"data: {TRAIN_ROWS} conversations in {DATA}/train.jsonl, held-out prompts in {DATA}/test.jsonl")
    if sys.argv[1:] == ["data"]:
        return 0
    from cluster.run import train

    console.print("\n[bold]1. Supervised start[/bold] (configs/demo-sft.yaml)")
    start = train(load_config("configs/demo-sft.yaml"), overwrite=True)
    console.print("\n[bold]2. SAPO[/bold] (configs/demo.yaml)")
    sapo = train(load_config("configs/demo.yaml"), overwrite=True)
    console.print("\n[bold]3. Evaluation[/bold] on held-out prompts, by a program that checks the answers")
    models = {"supervised start": start.policy, "SAPO policy": sapo.policy, "SAPO average": sapo.ema}
    results = {
        name: evaluate(str(path), DATA / "test.jsonl", "demo.task:check", samples=SAMPLES, temperature=0.7)
        for name, path in models.items()
    }
    _print(console, results)
    console.print(f"\nSAPO run: {sapo.verdict}")
    console.print(f"pairs that it trained on: {sapo.folder}/samples.jsonl   metrics: {sapo.folder}/metrics.jsonl")
    console.print(f"curves: .venv/bin/tensorboard --logdir {sapo.folder.parent}")
    console.print("change it: .venv/bin/sapo train configs/demo.yaml name=mine objective.beta=0.05")
    console.print(f"total: {time.monotonic() - started:.0f} s")
    return 0


def _print(console: Console, results: dict[str, Evaluation]) -> None:
    table = Table(title="share of right answers (± one standard error)")
    for head in ("model", "greedy", "sampled at 0.7", "against the start"):
        table.add_column(head)
    base = next(iter(results.values()))
    for name, result in results.items():
        change = "" if result is base else f"{result.sampled.mean - base.sampled.mean:+.3f} sampled"
        table.add_row(name, str(result.greedy), str(result.sampled), change)
    console.print(table)
    sapo, error = list(results.values())[1], base.sampled.error
    difference = sapo.sampled.mean - base.sampled.mean
    noise = (sapo.sampled.error**2 + error**2) ** 0.5
    word = "helped" if difference > 2 * noise else "hurt" if difference < -2 * noise else "made no clear difference"
    console.print(f"SAPO {word}: {difference:+.3f} ± {noise:.3f} on sampled answers.")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(2)
