"""What checkpoints cost: supervised runs on the demo's data, steps with a checkpoint against steps without, in turn.

    python -m benchmarks.checkpoints [--steps 450] [--hidden 384] [--rounds 1]

Each run has a checkpoint every 100 steps. The 50 steps after one are compared with the 50 before it: that is an
interval of 50 steps against none. ``held``: how long training stood still for a checkpoint, as a share of 50 steps.
``cost``: held, and what the 50 steps after a checkpoint took beyond those before. Once with
``checkpoint.background``, once without. Runs on CPU: two ranks, and no engines, whose work would blur the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.models import with_random_weights
from benchmarks.report import machine, save, table_of
from demo.model import write_model
from demo.task import write_data

WINDOW = 50
"""Steps with a checkpoint, and steps without."""
WAYS = {"in the background": True, "at once": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--hidden", type=int, default=384, help="width of the model; three layers")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        write_data(folder, 5000, 0)
        write_model(folder / "model", hidden=arguments.hidden)
        with_random_weights(folder / "model")
        for number in range(arguments.rounds):
            for way, background in WAYS.items():
                found[way] += _run(folder, f"{number}-{background}", arguments.steps, background)
                print(f"round {number}, {way}: {found[way][-1]}", flush=True)
    rows = [[way, *_summary(checkpoints)] for way, checkpoints in found.items()]
    head = ["written", "checkpoints", "MB", "s a step", "written in s", "held s", "held", "cost", "range of cost"]
    print(table_of(head, rows))
    save("checkpoints", {"machine": machine(), "checkpoints": found})


def _run(folder: Path, name: str, steps: int, background: bool) -> list[dict[str, float]]:
    """What each checkpoint of a run cost."""
    config: dict[str, Any] = {
        "name": name,
        "output_dir": str(folder / "runs"),
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"path": str(folder / "train.jsonl"), "max_length": 32, "max_prompt_length": 16},
        "method": "sft",
        "objective": {"name": "sft"},
        "reference": {"mode": "none"},
        "learner": {"ranks": 2, "cpus_per_rank": 0.5, "batch_size": 32, "steps": steps, "tokens_per_batch": 2048},
        "checkpoint": {"every": 2 * WINDOW, "keep": 2, "background": background},
        "logging": {"tensorboard": False},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    subprocess.run([sys.executable, "-m", "cluster", "train", str(path)], check=True, stdout=subprocess.DEVNULL)
    run = folder / "runs" / name
    seconds = {line["step"]: line["time/step_s"] for line in _lines(run / "metrics.jsonl")}
    size = sum(file.stat().st_size for file in (run / "checkpoints" / f"step-{steps}").rglob("*") if file.is_file())
    found = []
    for event in _lines(run / "events.jsonl"):
        if event["event"] != "checkpoint" or event["step"] + WINDOW > steps:
            continue
        before = sum(seconds[event["step"] - i] for i in range(WINDOW))
        after = sum(seconds[event["step"] + 1 + i] for i in range(WINDOW))
        found.append(
            {
                "mb": size / 1e6,
                "step_s": before / WINDOW,
                "seconds": event["seconds"],
                "held_s": event["held_s"],
                "held": event["held_s"] / before,
                "cost": (event["held_s"] + after) / before - 1,
            }
        )
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _summary(checkpoints: list[dict[str, float]]) -> list[str]:
    def median(key: str) -> float:
        return statistics.median(checkpoint[key] for checkpoint in checkpoints)

    costs = [checkpoint["cost"] for checkpoint in checkpoints]
    return [
        f"{len(checkpoints)}",
        f"{median('mb'):.0f}",
        f"{median('step_s'):.3f}",
        f"{median('seconds'):.2f}",
        f"{median('held_s'):.3f}",
        f"{median('held'):.2%}",
        f"{median('cost'):+.1%}",
        f"{min(costs):+.1%} to {max(costs):+.1%}",
    ]


if __name__ == "__main__":
    main()
