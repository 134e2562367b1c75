"""Run folders as a run leaves them, made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from cluster.config.loading import validate_config

START = 1_795_748_070.0
"""When the made runs start, in seconds since the epoch."""


def step_metrics(step: int) -> dict[str, Any]:
    """A line of metrics.jsonl: 0.5 s a step, of which half is the forward."""
    return {
        "step": step,
        "loss": 1.0 / step,
        "rewards/chosen": 0.1 * step,
        "rewards/margins": 0.01 * step,
        "staleness/max": 1.0,
        "tokens/generated": 100 * step,
        "tokens/trained": 700.0,
        "pairs/identical_fraction": None if step == 1 else 0.0,
        "time/draw_wait_s": 0.05,
        "time/forward_backward_s": 0.25,
        "time/optimizer_s": 0.05,
        "time/train_s": 0.35,
        "time/step_s": 0.5,
        "my/own": float(step),
    }


def sample(step: int, **changes: Any) -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {
        "step": step,
        "index": 7,
        "row": 3,
        "version": step - 2,
        "age": 1,
        "actor": "actor-0",
        "prompt": "write </script><b>3 numbers",
        "chosen": "1 ⟦2 9⟧",
        "rejected": "1 ⟦4⟧",
        "ended": True,
        "suffix_kept": False,
        "margin": 0.25,
        "edit_fraction": 0.5,
        "replacement_logprob": -1.25,
    } | changes


def event(after_s: float, kind: str, message: str = "", **details: Any) -> dict[str, Any]:
    """A line of events.jsonl."""
    return {"time": START + after_s, "event": kind, "message": message or kind} | details


def make_run(folder: Path, steps: int = 30, *, events: Iterable[dict[str, Any]] = (), **config: Any) -> Path:
    """A run folder of so many steps; ``config`` overrides sections of the config."""
    folder.mkdir(parents=True)
    values = {"name": folder.name, "model": {"path": "model"}, "data": {"path": "rows.jsonl"}} | config
    (folder / "config.yaml").write_text(yaml.safe_dump(validate_config(values, "test").model_dump(mode="json")))
    write_lines(folder / "metrics.jsonl", map(step_metrics, range(1, steps + 1)))
    write_lines(folder / "samples.jsonl", [sample(10), sample(20, ended=False)])
    write_lines(folder / "events.jsonl", events or [event(0, "started", step=0), event(20, "complete", step=steps)])
    (folder / "run.log").write_text(
        "2026-11-27 02:54:30,736 INFO rows.jsonl: 20 of 21 rows used\n"
        "2026-11-27 02:54:31,000 DEBUG not for an operator\n"
        "Traceback (most recent call last):\n"
        "2026-11-27 02:54:40,393 INFO 27/30  loss 1.3359  2.7 steps/s\n"
        "2026-11-27 02:54:41,393 WARNING actor-0 died\n"
    )
    return folder


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
