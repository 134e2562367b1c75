"""What must be true of a run that was hit: it ended by itself, nothing is missing, double or left."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from benchmarks.chaos.faults import runs
from buffer.snapshot import read_state
from cluster.storage.run_lock import run_lock
from contracts.errors import UserError

SETTLE_S = 20.0
"""After the end of a run, how long its processes may take to go."""


@dataclass
class Traces:
    """What processes have left on the machine: themselves, shared memory, folders of Ray's sessions."""

    processes: dict[int, psutil.Process] = field(default_factory=dict)
    memory: set[Path] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)

    def look(self, root: psutil.Process) -> None:
        """Note what there is below ``root`` now."""
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            self.processes[process.pid] = process
            try:
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                words = process.cmdline()
            except (OSError, psutil.Error):
                continue
            self.memory |= {Path(line.split()[-1]) for line in maps.splitlines() if " /dev/shm/" in line}
            values = [Path(word.partition("=")[2]) for word in words]
            self.folders |= {Path(*path.parts[:3]) for path in values if str(path).startswith("/tmp/sapo-")}

    def left(self) -> list[str]:
        """What is still there, after a while."""
        deadline = time.monotonic() + SETTLE_S
        while any(map(runs, self.processes.values())) and time.monotonic() < deadline:
            time.sleep(0.5)
        found = [f"process {p.pid} ({p.name()}) is left" for p in self.processes.values() if runs(p)]
        return found + [f"{path} is left" for path in sorted(self.memory | self.folders) if path.exists()]


def findings(run_dir: Path, bound: int, steps: int, batch: int, peaceful: Path | None) -> list[str]:
    """What is wrong with a run that has ended.

    Args:
        bound: weights.max_staleness.
        peaceful: the same run, undisturbed; None: not to be compared.
    """
    wrong = []
    metrics = history(run_dir)
    found = [int(line["step"]) for line in metrics]
    if found != list(range(1, steps + 1)):
        wrong.append(f"steps {found}")
    if any(line["staleness/max"] > bound for line in metrics):
        wrong.append(f"staleness over {bound}")
    # Overlapped, the batch that was drawn ahead is lost with its attempt, and another one is drawn in its place.
    ahead = [line["pairs/drawn"] - batch * line["step"] for line in metrics]
    if any(more < 0 or more % batch or (more and not bound) for more in ahead):
        wrong.append("drawn pairs do not add up")
    last = run_dir / "checkpoints" / f"step-{steps}"
    if last.exists():
        state = read_state(last / "buffer")
        accounted = state.ledger.mark + len(state.ledger.done)
        outcomes = sum(state.counts.values()) + len(state.held)  # those that wait for their turn are counted later
        if accounted != outcomes:
            wrong.append(f"{accounted} indices are accounted for, with {outcomes} outcomes")
    else:
        wrong.append("no last checkpoint")
    try:
        with run_lock(run_dir):
            pass
    except UserError as error:
        wrong.append(str(error))
    if peaceful:
        wrong += _differences(run_dir, peaceful, steps)
    return wrong


def _differences(run_dir: Path, peaceful: Path, steps: int) -> list[str]:
    wrong = []
    for ours, theirs in zip(history(run_dir), history(peaceful), strict=False):
        if keys := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            wrong.append(
                f"metrics differ from the undisturbed run's, first at step {theirs['step']}: {', '.join(keys)}"
            )
            break
    for half in ("policy", "ema"):
        file = f"checkpoints/step-{steps}/{half}/model.safetensors"
        if not (run_dir / file).exists() or (run_dir / file).read_bytes() != (peaceful / file).read_bytes():
            wrong.append(f"{half} differs from the undisturbed run's")
    return wrong


def distance(run_dir: Path, peaceful: Path, steps: int) -> dict[str, float]:
    """How far a run's last weights are from the undisturbed run's: the largest and the mean |difference|, and what the
    largest weight is."""
    file = f"checkpoints/step-{steps}/policy/model.safetensors"
    ours, theirs = load_file(run_dir / file), load_file(peaceful / file)
    apart = np.concatenate([np.abs(ours[name] - theirs[name]).ravel() for name in theirs])
    largest = max(float(np.abs(weight).max()) for weight in theirs.values())
    return {"largest": float(apart.max()), "mean": float(apart.mean()), "of": largest}


def events(run_dir: Path, kind: str) -> int:
    """How many events of a kind there were so far."""
    path = run_dir / "events.jsonl"
    return path.read_text().count(f'"event": "{kind}"') if path.exists() else 0


def history(run_dir: Path) -> list[dict[str, Any]]:
    """Metrics by step, without what depends on the clock."""
    lines = run_dir / "metrics.jsonl"
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return [{k: v for k, v in m.items() if not k.startswith(("time/", "buffer/blocked"))} for m in found]
