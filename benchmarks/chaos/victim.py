"""A run that is hit: started, watched, struck, and started again when its driver was the victim."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.chaos.audit import Traces, events
from benchmarks.chaos.faults import FULL_S, Fault, parts_of, strike, wait_until, whole_checkpoints
from benchmarks.chaos.nodes import LocalCluster

RUN_S = 1800.0
"""Longest wait for a step, or for the end."""
NOTICED_S = 300.0
"""Longest wait until the run notices a death."""
JOIN_S = 15.0
"""Longest time after the death of a node until another one joins."""
ENDED = {
    "kill": (-signal.SIGKILL,),
    "term": (128 + signal.SIGTERM,),
    "preempt": (128 + signal.SIGTERM,),
}
"""Exit status of a driver that was hit."""
WAITING_S = 3.0
"""After its actors have stopped, a run has nothing left to do and waits."""
BY_ERROR = 2
"""Exit status of a driver that says what is wrong."""
FULL_DISK = "could not be written"
"""And what it says when its disk is full."""


@dataclass
class Hit:
    """A fault that has happened."""

    fault: str
    step: int
    """Steps that were done."""
    recovery_s: float | None
    """Until the next step, in seconds, of a new attempt where one is due; of a driver from when it is started again.
    None: the run ended before."""
    load: float
    """Processes that the machine would have run at that moment, on average over a minute."""


@dataclass
class Outcome:
    """What became of a run that was hit."""

    hits: list[Hit] = field(default_factory=list)
    exit_s: list[float] = field(default_factory=list)
    """From each SIGTERM to the driver's end, in seconds."""
    full: int = 0
    """Times that it ended by itself, as its last checkpoint met a full disk; it was started again."""
    apart: dict[str, float] = field(default_factory=dict)
    """With other ranks than the undisturbed run: how far its last weights are from that run's, by `audit.distance`."""
    wrong: list[str] = field(default_factory=list)
    """What should be true of it and is not."""


class Victim:
    """One run."""

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: dict[str, Any],
        cluster: LocalCluster | None,
        chance: random.Random,
        changes: Mapping[str, Sequence[int]],
        *,
        rejoin: bool = True,
    ) -> None:
        """
        Args:
            cluster: None: the run starts Ray by itself.
            changes: config keys, and what each of them may be after the driver was ended.
            rejoin: another node joins after one was killed.
        """
        self.folder = folder / "runs" / name
        self._log, self._config = folder / f"{name}.log", folder / f"{name}.yaml"
        self._config.write_text(yaml.safe_dump(settings))
        self._cluster, self._chance, self._changes, self._rejoin = cluster, chance, changes, rejoin
        self._traces = Traces()
        self._outcome = Outcome()

    def hit_by(self, faults: Sequence[Fault]) -> Outcome:
        """Let the faults happen one after the other, and wait for the end."""
        self._start()
        for fault in faults:
            at = self._steps() + self._chance.randint(1, 6)
            if not wait_until(lambda at=at: self._steps() >= at, self._driver, RUN_S):  # type: ignore[misc]
                break
            time.sleep(self._chance.random())
            self._traces.look(self._driver)
            step, failed, recovered = self._steps(), self._failed(), self._recovered()
            if not self._strike(fault):
                continue
            began = time.monotonic()
            if fault.ends_attempt and wait_until(
                lambda failed=failed: self._failed() > failed,  # type: ignore[misc]
                self._driver,
                NOTICED_S,
            ):
                came = wait_until(lambda before=recovered: self._recovered() > before, self._driver, RUN_S)  # type: ignore[misc]
            else:
                came = wait_until(_NextStep(self), self._driver, RUN_S)
            recovery_s = time.monotonic() - began if came else None
            self._outcome.hits.append(Hit(str(fault), step, recovery_s, os.getloadavg()[0]))
        self._traces.look(self._driver)
        self._await_end()
        self._outcome.wrong += self._traces.left()
        return self._outcome

    def _start(self, *changes: str) -> None:
        command = [sys.executable, "-m", "cluster", "train", str(self._config), *changes]
        if self._cluster:
            command.append(f"cluster.address={self._cluster.address}")
        environment = self._cluster.environment if self._cluster else dict(os.environ)
        with self._log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, process_group=0)
        self._driver = psutil.Process(self._process.pid)

    def _strike(self, fault: Fault) -> bool:
        if fault.part == "node":
            return self._cluster is not None and self._kill_node(self._cluster)
        if fault.part == "driver":
            self._end_driver(fault)
            return True
        return strike(fault, self._roots, self.folder / "checkpoints", self._chance)

    @property
    def _roots(self) -> list[psutil.Process]:
        """Below them are the run's processes."""
        return self._cluster.roots if self._cluster else [self._driver]

    def _end_driver(self, fault: Fault) -> None:
        saves = fault.kind != "kill"
        if fault.kind == "preempt":
            for actor in parts_of(self._roots, "actor"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    actor.suspend()
            time.sleep(WAITING_S)
        began = time.monotonic()
        if fault.kind == "preempt":
            os.killpg(self._process.pid, signal.SIGTERM)
        else:
            self._process.send_signal(signal.SIGTERM if saves else signal.SIGKILL)
        # It may just have ended by itself, and the disk may be full for the checkpoint that SIGTERM asks for.
        self._note_end((*ENDED[fault.kind], 0), FULL_DISK if saves and self._filled else None)
        if saves:
            found = max(whole_checkpoints(self.folder / "checkpoints"), default=0)
            if found < self._steps() and not self._filled:
                self._outcome.wrong.append(
                    f"ended by {fault} at step {self._steps()}, its newest checkpoint is {found}"
                )
            self._outcome.exit_s.append(time.monotonic() - began)
        self._start(*(f"{key}={self._chance.choice(values)}" for key, values in self._changes.items()))

    def _kill_node(self, cluster: LocalCluster) -> bool:
        if not cluster.kill_node(self._chance):
            return False
        if self._rejoin:
            threading.Timer(self._chance.uniform(0.0, JOIN_S), cluster.add).start()
        return True

    def _await_end(self) -> None:
        """Wait until the run has made its last step; one that could not write its last checkpoint is started again."""
        while self._note_end((0,), FULL_DISK if self._outcome.full < self._filled else None):
            self._outcome.full += 1
            time.sleep(FULL_S)
            self._start()

    @property
    def _filled(self) -> int:
        """How often its disk was full."""
        return sum(hit.fault.startswith("full") for hit in self._outcome.hits)

    def _note_end(self, expected: tuple[int, ...], allowed: str | None = None) -> bool:
        """Wait for the driver's end. A status that is not expected is wrong, unless its last line says ``allowed``;
        whether it did."""
        try:
            status = self._process.wait(RUN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if status in expected:
            return False
        if allowed and status == BY_ERROR and allowed in self._last_line():
            return True
        self._outcome.wrong.append(f"ended with status {status}: {self._last_line()}")
        return False

    def _last_line(self) -> str:
        return " ".join(self._log.read_text().strip().splitlines()[-1:])

    def _failed(self) -> int:
        """Attempts that have failed so far."""
        return events(self.folder, "attempt failed")

    def _recovered(self) -> int:
        """How often a step was made after a failure; an attempt may fail before it has made one."""
        return events(self.folder, "recovered")

    def _steps(self) -> int:
        """The last step that is in the metrics; the file may be in the middle of a write."""
        lines = self.folder / "metrics.jsonl"
        return len(lines.read_text().splitlines()) if lines.exists() else 0


class _NextStep:
    """Whether a step was added since the last look; a new attempt first takes some away."""

    def __init__(self, victim: Victim) -> None:
        self._steps = partial(Victim._steps, victim)
        self._seen = self._steps()

    def __call__(self) -> bool:
        before, self._seen = self._seen, self._steps()
        return self._seen > before
