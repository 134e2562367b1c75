"""Runs SAPO on a real language model and real text, a few steps on CPU: ``python -m demo.real``.

The model is SmolLM2-135M-Instruct, the text are docstrings of Python's standard library.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.config.loading import load_config
from cluster.config.recipes import recipe
from contracts.errors import UserError
from demo.docstrings import write_rows
from demo.smollm2 import write_model

DATA = Path("data/real")
SEED = 0
COLUMNS = {
    "step": "step",
    "loss": "loss",
    "rewards/margins": "margin",
    "pairs/edit_distance": "edits",
    "weights/parity_mean_nats": "parity, mean",
    "weights/parity_max_nats": "parity, max",
    "time/step_s": "seconds",
}
SHOWN = 3
"""Pairs."""


def main() -> int:
    console = Console()
    started = time.monotonic()
    write_model(DATA / "model")
    rows = write_rows(DATA / "train.jsonl", SEED)
    console.print(f"SmolLM2-135M-Instruct in {DATA}/model, {rows} docstrings in {DATA}/train.jsonl")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vllm is imported
    from cluster.run.train import train

    result = train(load_config(recipe("demo-real").path), overwrite=True)
    console.print(steps_table(read_lines(result.folder / "metrics.jsonl")))
    for sample in read_lines(result.folder / "samples.jsonl")[-SHOWN:]:
        console.print(readable(sample), soft_wrap=True, highlight=False)
    console.print(f"all pairs that were shown: {result.folder}/samples.jsonl", soft_wrap=True, highlight=False)
    console.print(f"total: {time.monotonic() - started:.0f} s")
    return 0


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def steps_table(metrics: list[dict[str, Any]]) -> Table:
    """One row a step; steps without a parity check leave its columns empty."""
    table = Table(title="what every step gave")
    for head in COLUMNS.values():
        table.add_column(head, justify="right")
    for line in metrics:
        table.add_row(*(f"{line[name]:.2g}" if name in line else "" for name in COLUMNS))
    return table


def readable(sample: dict[str, Any]) -> str:
    """A pair with its question, its segments between ⟦ and ⟧."""
    question = sample["prompt"].rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    return (
        f"\n[bold]step {sample['step']}: {escape(question)}[/bold]\n"
        f"[green]chosen[/green]   {escape(sample['chosen'])}\n[red]rejected[/red] {escape(sample['rejected'])}"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"demo: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
