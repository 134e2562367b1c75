"""Publishes versions: staged by all ranks between two steps, sent by rank 0 while the next step runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from ray.actor import ActorHandle

from cluster.weights.staging import Layer, Metadata, Slot


@dataclass(frozen=True)
class Ack:
    """An actor's answer to a publication."""

    actor: str
    version: int
    seconds: float
    error: str = ""
    """Why the version did not arrive, after a retry on a rebuilt group; empty when it did."""


def choose_backend(wanted: str, use_gpu: bool, nodes: int) -> str:
    """``auto``: nccl on GPUs, shared memory on one machine, else gloo."""
    if wanted != "auto":
        return wanted
    return "nccl" if use_gpu else "shm" if nodes == 1 else "gloo"


class Publisher:
    """Made by ``cluster``, carried to the learner ranks; what it holds exists on rank 0 alone.

    Two slots: ``stage`` never waits for ``send``. A version that is overtaken before it is sent is skipped.
    """

    def __init__(self, backend: str, *, timeout_s: float, workers_per_engine: int = 1) -> None:
        self._backend, self._timeout_s, self._workers = backend, timeout_s, workers_per_engine
        self._actors: dict[str, ActorHandle] = {}
        self._held: dict[str, int] = {}
        self._slots: list[Slot] = []
        self._engines: dict[tuple[str, ...], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # It travels before it is used; the lock is made where it lives.
        return {k: v for k, v in vars(self).items() if k != "_lock"}

    @property
    def _guard(self) -> threading.Condition:
        if "_lock" not in vars(self):
            self._lock = threading.Condition()
            self._sending: Slot | None = None
        return self._lock

    def stage(self, version: int, metadata: Metadata, layers: Iterable[Layer]) -> None:
        """Copy a version in. Only the gather behind ``layers`` and this copy hold up training."""
        with self._guard:
            if not self._slots:
                gpu = torch.device("cuda", 0) if self._backend in ("nccl", "ipc") else None
                self._slots = [Slot(shared=self._backend == "shm", device=gpu) for _ in range(2)]
            # The slot that is neither being sent nor the newest of two idle ones.
            free = min((s for s in self._slots if s is not self._sending), key=lambda s: s.version)
            free.version = -1
        free.fill(version, metadata, layers)

    def retarget(self, actors: dict[str, ActorHandle]) -> None:
        """Send to these actors from now on. Groups are rebuilt at the next ``send``."""
        if actors.keys() != self._actors.keys():
            self._disconnect()
        self._actors = dict(actors)
        self._held = {name: version for name, version in self._held.items() if name in actors}

    def send(self) -> list[Ack]:
        """Bring every actor to the newest staged version; those that have it are not sent to again."""
        with self._guard:
            slot = max(self._slots, key=lambda s: s.version, default=None)
            if slot is None or slot.version < 0:
                return []
            self._sending = slot
        try:
            behind = {n: a for n, a in self._actors.items() if self._held.get(n, -1) < slot.version}
            acks = self._send(slot, behind) if behind else []
        finally:
            with self._guard:
                self._sending = None
        for ack in acks:
            if not ack.error:
                self._held[ack.actor] = ack.version
        current = [Ack(n, v, 0.0) for n, v in self._held.items() if n not in behind]
        return acks + current

    def shutdown(self) -> None:
        """Free the shared memory and leave the groups."""
        self._disconnect()
        for slot in self._slots:
            slot.release()
        self._slots = []

    def _send(self, slot: Slot, actors: dict[str, ActorHandle]) -> list[Ack]:
        if self._backend in ("nccl", "gloo"):
            # One broadcast reaches all; a failed one leaves the group unusable for all.
            return self._attempt_twice(slot, actors)
        with ThreadPoolExecutor(max(1, len(actors))) as pool:
            each = pool.map(lambda item: self._attempt_twice(slot, dict([item])), actors.items())
            return [ack for acks in each for ack in acks]

    def _attempt_twice(self, slot: Slot, actors: dict[str, ActorHandle]) -> list[Ack]:
        from cluster.weights.client import TransferFailed

        left = dict(actors)
        failed: list[Ack] = []
        for attempt in (1, 2):
            if not left:
                break
            started = time.monotonic()
            try:
                self._once(slot, left)
                seconds = time.monotonic() - started
                return failed + [Ack(name, slot.version, seconds) for name in left]
            except (TransferFailed, RuntimeError, TimeoutError, OSError) as error:
                self._disconnect(tuple(left))
                culprit = getattr(error, "actor", None)
                reason = getattr(error, "reason", None) or f"{type(error).__name__}: {str(error).splitlines()[0]}"
                if attempt == 2:
                    blamed = [culprit] if culprit in left else list(left)
                    failed += [Ack(name, slot.version, 0.0, reason) for name in blamed]
                    left = {n: a for n, a in left.items() if n not in blamed}
        if left:
            # The others had no fault of their own: once more without the culprit.
            return failed + self._attempt_twice(slot, left)
        return failed

    def _once(self, slot: Slot, actors: dict[str, ActorHandle]) -> None:
        from cluster.weights.client import ActorsClient
        from cluster.weights.senders import connect

        key = tuple(actors)
        if key not in self._engines:
            client = ActorsClient(actors, self._workers, self._timeout_s)
            self._engines[key] = connect(self._backend, client, slot, self._timeout_s)
        engine = self._engines[key]
        engine.source = slot
        engine.client.version, engine.client.digests = slot.version, slot.digests
        engine.send_weights()

    def _disconnect(self, key: tuple[str, ...] | None = None) -> None:
        for members in [key] if key else list(self._engines):
            if engine := self._engines.pop(members, None):
                engine.shutdown()
