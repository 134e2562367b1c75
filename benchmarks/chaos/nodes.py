"""A Ray cluster of several nodes on this machine: each a raylet of its own, which can be killed."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from benchmarks.chaos.faults import end, runs
from contracts.ports import free_port

RAY = str(Path(sys.executable).parent / "ray")
CPUS = 2
"""Of each node, if not told otherwise. The head has none: it can't be killed, so nothing of a run is placed there."""


JOIN_S = 300.0
"""Longest wait for a node's port."""
TRIES = 3
"""Ray gives a node 30 s to start, too few on a busy machine."""


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


class LocalCluster:
    """A head and some nodes, ended with the context."""

    def __init__(self, nodes: int, cpus: int = CPUS) -> None:
        self._count, self._cpus = nodes, cpus
        self._nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp(prefix="chaos-ray-", dir="/tmp")
        port = free_port("127.0.0.1")
        self.address = f"127.0.0.1:{port}"
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "disabled",
            "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self._head = self._start(port, "--head", f"--port={port}", f"--temp-dir={self._folder}", cpus=0)
        self.fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for node in (*self._nodes, self._head):
            end(node)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def roots(self) -> list[psutil.Process]:
        """What all of the cluster's processes descend from."""
        return [psutil.Process(node.pid) for node in (self._head, *self._nodes) if node.poll() is None]

    def add(self) -> None:
        """Let a node join."""
        port = free_port("127.0.0.1")
        joined = self._start(port, f"--address={self.address}", f"--node-manager-port={port}", cpus=self._cpus)
        self._nodes.append(joined)

    def fill(self) -> None:
        """Let as many nodes join as are missing."""
        while len(self._nodes) < self._count:
            self.add()

    def kill_node(self, chance: random.Random) -> bool:
        """SIGKILL to one node's raylet and everything on it; False: there is none."""
        alive = [node for node in self._nodes if node.poll() is None]
        if not alive:
            return False
        victim = chance.choice(alive)
        family = psutil.Process(victim.pid).children(recursive=True)
        for process in sorted(family, key=lambda process: "raylet" not in process.name()):
            if runs(process):
                process.kill()
        victim.kill()
        victim.wait()
        self._nodes.remove(victim)
        return True

    def _start(self, port: int, *arguments: str, cpus: int) -> subprocess.Popen[bytes]:
        """A node that answers at ``port``."""
        local = ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        ports = [f"--metrics-export-port={free_port('127.0.0.1')}"]
        if "--head" in arguments:
            ports += ["--include-dashboard=false", f"--ray-client-server-port={free_port('127.0.0.1')}"]
        for _ in range(TRIES):
            node = subprocess.Popen(
                [RAY, "start", *arguments, f"--num-cpus={cpus}", *local, *ports],
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            deadline = time.monotonic() + JOIN_S
            while node.poll() is None and time.monotonic() < deadline:
                if _answers(port):
                    return node
                time.sleep(0.5)
            if node.poll() is None:
                end(node)
        raise RuntimeError(f"a node of the cluster at {self.address} does not start")
