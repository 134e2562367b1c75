"""``sapo plan`` against what runs take: memory of a rank and an actor, pairs a second; three models on CPU.

    python -m benchmarks.plan [--models 3M 10M 30M] [--steps 12] [--folder FOLDER]

Each run trains on rows as long as short conversations (benchmarks/conversations.py), overlapped, one rank and one
actor. Memory is the peak of a process as the kernel has it, without what it shares. Speed is predicted with the
factors of the first model's run. With --folder the runs are kept, and those that are there are compared without being
run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import yaml

from benchmarks import conversations
from benchmarks.models import SHAPES, with_random_weights
from benchmarks.report import machine, save, table_of
from cluster.config.loading import load_config
from cluster.planning.calibration import WARM_STEPS, calibrate
from cluster.planning.memory import actor_host_bytes, rank_host_bytes
from cluster.planning.model_shape import read_shape
from cluster.planning.throughput import DEVICES, Calibration, step_time
from cluster.planning.workload import of_table
from cluster.reports.page.run_record import read_run
from cluster.run.inputs import read_inputs

GIB = 2**30
LOOK_S = 0.3


@dataclass(frozen=True)
class Compared:
    """One model."""

    model: str
    rank_gib: tuple[float, float]
    """Planned, measured; so are the others."""
    actor_gib: tuple[float, float]
    pairs_per_s: tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=["3M", "10M", "30M"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    found: list[Compared] = []
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as temporary:
        folder = arguments.folder or Path(temporary)
        factors: Calibration | None = None
        for model in arguments.models:
            config, run = folder / model / "conversations.yaml", folder / model / "runs" / "plan"
            peaks = _peaks(model, folder / model, arguments.steps)
            factors = factors or calibrate(run, DEVICES["cpu"], None)
            found.append(_compare(model, config, run, peaks, factors))
            print(found[-1], flush=True)
    rows = [[c.model, *(_cells(pair) for pair in (c.rank_gib, c.actor_gib, c.pairs_per_s))] for c in found]
    print(table_of(["model", "GiB of a rank", "GiB of an actor", "pairs/s"], rows))
    save("plan", {"machine": machine(), "compared": [asdict(c) for c in found]})


def _cells(pair: tuple[float, float]) -> str:
    planned, measured = pair
    return f"{planned:.2f} planned, {measured:.2f} measured ({planned / measured - 1:+.0%})"


def _peaks(model: str, folder: Path, steps: int) -> dict[str, int]:
    """Of a run in ``folder``, which is made unless it is there."""
    noted = folder / "peaks.json"
    if not noted.exists():
        noted.write_text(json.dumps(_train(_write(model, folder), steps)))
    found: dict[str, int] = json.loads(noted.read_text())
    return found


def _write(model: str, folder: Path) -> Path:
    """A config of one rank and one actor for a model of that size."""
    folder.mkdir(parents=True, exist_ok=True)
    config = Path(conversations.write("conversations", folder))
    hidden, layers, heads, intermediate = SHAPES[model]
    with_random_weights(
        folder / "model",
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=intermediate,
        max_position_embeddings=1024,
    )
    values = yaml.safe_load(config.read_text())
    values["learner"] |= {"ranks": 1, "batch_size": 8, "cpus_per_rank": 1}
    values["generation"] |= {"actors": 1, "max_concurrent_requests": 16}
    values |= {"name": "plan", "output_dir": str(folder / "runs"), "weights": {"max_staleness": 2, "parity_every": 0}}
    config.write_text(yaml.safe_dump(values))
    return config


def _train(config: Path, steps: int) -> dict[str, int]:
    """Peak bytes by class of process."""
    # One in the middle: a run's largest moment is a step beside the copy of a checkpoint.
    changes = [f"learner.steps={steps}", f"checkpoint.every={steps // 2}", "checkpoint.minutes=0"]
    command = [sys.executable, "-m", "cluster", "train", str(config), *changes, "--overwrite"]
    running = subprocess.Popen(command)
    peaks: dict[str, int] = {}
    while running.poll() is None:
        for name, size in _sizes(running.pid):
            peaks[name] = max(peaks.get(name, 0), size)
        time.sleep(LOOK_S)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}: status {running.returncode}")
    return peaks


def _sizes(pid: int) -> list[tuple[str, int]]:
    """(class, resident bytes that are not shared) of every worker of Ray under a process."""
    found = []
    try:
        for child in psutil.Process(pid).children(recursive=True):
            title = " ".join(child.cmdline())
            if title.startswith("ray::"):
                memory = child.memory_info()
                # ray::NAME:CLASS.METHOD while it works, ray::CLASS between calls
                kind = title.removeprefix("ray::").rpartition(":")[2].split(".")[0].split()[0]
                found.append((kind, memory.rss - memory.shared))
    except psutil.Error:  # it has ended meanwhile
        pass
    return found


def _compare(model: str, path: Path, run: Path, peaks: dict[str, int], factors: Calibration) -> Compared:
    config = load_config(path)
    shape, workload = read_shape(config.model), of_table(read_inputs(config).table, config.generation.segment_length)
    planned = step_time(config, shape, workload, DEVICES["cpu"], None, 1, 1, factors)
    seconds = read_run(run).column("time/step_s")[WARM_STEPS:]
    return Compared(
        model,
        (rank_host_bytes(config, shape, workload, use_gpu=False) / GIB, peaks["LearnerRank"] / GIB),
        (actor_host_bytes(config, shape, workload, use_gpu=False) / GIB, peaks["GenerationActor"] / GIB),
        (config.learner.batch_size / planned.total_s, config.learner.batch_size / float(seconds.mean())),
    )


if __name__ == "__main__":
    main()
