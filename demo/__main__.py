"""Runs the demo: data, a supervised start, SAPO and more supervised training from it, and a table of what each did.

``python -m demo data`` stops after the data.
"""

from __future__ import annotations

import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.config.loading import load_config
from cluster.config.recipes import recipe
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.messages import Evaluation
from contracts.errors import UserError
from demo.model import write_model
from demo.task import write_data

DATA = Path("data/demo")
TRAIN_ROWS = 20_000
SEED = 0
SAMPLES = 16
"""Sampled responses per held-out prompt."""
AT_ONCE = 2
"""Models evaluated at a time, each in an engine of its own."""
STAGES = {
    "demo-sft": "Supervised start",
    "demo": "SAPO",
    "demo-sft-continued": "Supervised training continued, for comparison",
}


def make_data() -> None:
    """data/demo: train.jsonl, test.jsonl, model/ (tokenizer and architecture)."""
    write_data(DATA, TRAIN_ROWS, SEED)
    write_model(DATA / "model")


def main() -> int:
    console = Console()
    started = time.monotonic()
    make_data()
    console.print(f"data: {TRAIN_ROWS} conversations in {DATA}/train.jsonl, held-out prompts in test.jsonl")
    if sys.argv[1:] == ["data"]:
        return 0
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read when vllm is imported
    from cluster.run.train import train
    from cluster.workers.ray_session import ray_session
    from cluster.workers.resources import needed_cpus

    configs = {name: load_config(recipe(name).path) for name in ("demo-sft", "demo", "demo-sft-continued")}
    runs = {}
    with ray_session(configs["demo"].cluster, needed_cpus(configs["demo"])):
        for number, (name, config) in enumerate(configs.items(), 1):
            console.print(f"\n[bold]{number}. {STAGES[name]}[/bold] (configs/{name}.yaml)")
            runs[name] = train(config, overwrite=True)
    console.print("\n[bold]4. Evaluation[/bold] on held-out prompts, by a program that checks the answers")
    sapo = runs["demo"]
    models = {
        "supervised start": runs["demo-sft"].policy,
        "SFT continued": runs["demo-sft-continued"].policy,
        "SAPO policy": sapo.policy,
        "SAPO EMA": sapo.ema,
    }
    with ThreadPoolExecutor(AT_ONCE) as pool:
        _print(console, dict(zip(models, pool.map(_evaluated, models.values()), strict=True)))
    console.print(f"\nSAPO run: {sapo.bottleneck}")
    program = _program("sapo")
    for what, where in (
        ("pairs that it trained on", sapo.folder / "samples.jsonl"),
        ("metrics of every step", sapo.folder / "metrics.jsonl"),
        ("curves", f"{program} report {sapo.folder}"),
        (
            "change it",
            f"{program} recipes demo --to mine, then {program} train mine/demo.yaml name=mine",
        ),
    ):
        console.print(f"{what}: {where}", soft_wrap=True, highlight=False)
    console.print(f"total: {time.monotonic() - started:.0f} s")
    return 0


def _program(name: str) -> str:
    """How it is called from here: by its path where it lies below this folder, as in .venv."""
    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name


def _evaluated(model: Path) -> Evaluation:
    return evaluate(str(model), DATA / "test.jsonl", "demo.task:check", samples=SAMPLES, temperature=0.7)


def _print(console: Console, results: dict[str, Evaluation]) -> None:
    table = Table(title="share of right answers (± one standard error)")
    for head in ("model", "greedy", "sampled at 0.7"):
        table.add_column(head)
    for name, result in results.items():
        table.add_row(name, str(result.greedy), str(result.sampled))
    console.print(table)
    sapo = results["SAPO policy"].sampled
    for name in ("supervised start", "SFT continued"):
        other = results[name].sampled
        difference, noise = sapo.mean - other.mean, math.hypot(sapo.error, other.error)
        word = "better" if difference > 2 * noise else "worse" if difference < -2 * noise else "not clearly different"
        console.print(f"SAPO against {name}, sampled: {difference:+.3f} ± {noise:.3f}, {word}", highlight=False)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"demo: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
