"""Publishes versions: staged by all ranks between two steps, sent by rank 0 while the next step runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from ray.actor import ActorHandle
from vllm.distributed.weight_transfer.base import TrainerWeightTransferEngine

from actors.messages import Backend
from cluster.weights.client import ActorsClient, TransferFailed
from cluster.weights.senders import connect
from cluster.weights.slot import Layer, Metadata, Slot
from cluster.weights.staging import StagedVersions
from contracts.errors import first_line
from learner.messages import Ack

ATTEMPTS = 2
"""That one actor may fail before it is given up."""
RELEASE_S = 10.0
"""Longest that an actor may need to answer after a transfer was broken off."""
FAILURES = (TransferFailed, RuntimeError, TimeoutError, OSError)
"""What a transfer may end with: an actor's own, the transport's, and vLLM's."""


class Publisher:
    """Every learner rank has one; what it holds exists on rank 0 alone.

    Where versions may overlap, ``stage`` never waits for ``send``, which may run in another thread. A version that is
    overtaken before it is sent is skipped.
    """

    def __init__(
        self, backend: Backend, staged: StagedVersions, *, timeout_s: float, workers_per_engine: int = 1
    ) -> None:
        """
        Args:
            timeout_s: longest wait for any answer of an actor.
            workers_per_engine: processes of one engine that receive weights.
        """
        self._backend, self._staged = backend, staged
        self._timeout_s, self._workers_per_engine = timeout_s, workers_per_engine
        self._actors: dict[str, ActorHandle] = {}
        self._held: dict[str, int] = {}
        self._senders: dict[tuple[str, ...], TrainerWeightTransferEngine] = {}
        """By the names of the actors that one reaches."""
        self._clients: dict[tuple[str, ...], ActorsClient] = {}
        """The same."""

    def stage(self, version: int, metadata: Metadata, layers: Iterable[Layer]) -> None:
        """Copy a version in. Only the gather behind ``layers`` and this copy hold up training."""
        self._staged.stage(version, metadata, layers)

    def retarget(self, actors: dict[str, ActorHandle]) -> None:
        """Send to these actors from now on. Groups are rebuilt at the next ``send``."""
        if actors.keys() != self._actors.keys():
            self._disconnect_all()
        self._actors = dict(actors)
        self._held = {name: version for name, version in self._held.items() if name in actors}

    def send(self) -> list[Ack]:
        """Bring every actor to the newest staged version; those that have it are not sent to again."""
        with self._staged.sending() as slot:
            if slot is None:
                return []
            behind = {name: a for name, a in self._actors.items() if self._held.get(name, -1) < slot.version}
            acks = self._send(slot, behind) if behind else []
        for ack in acks:
            if not ack.error:
                self._held[ack.actor] = ack.version
        current = [Ack(name, version, 0.0) for name, version in self._held.items() if name not in behind]
        return acks + current

    def shutdown(self) -> None:
        """Free the shared memory and leave the groups."""
        self._disconnect_all()
        self._staged.release()

    def _send(self, slot: Slot, actors: dict[str, ActorHandle]) -> list[Ack]:
        if self._backend in ("nccl", "gloo"):
            # One broadcast reaches all; a failed one leaves the group unusable for all.
            return self._deliver(slot, actors)
        with ThreadPoolExecutor(len(actors)) as pool:
            each = pool.map(lambda item: self._deliver(slot, dict([item])), actors.items())
            return [ack for acks in each for ack in acks]

    def _deliver(self, slot: Slot, actors: dict[str, ActorHandle]) -> list[Ack]:
        """The answers of all. After a failed attempt another is made on a rebuilt group, without the actors that are
        gone, and without those that have failed twice."""
        left, failures = dict(actors), Counter[str]()
        failed: list[Ack] = []
        while left:
            try:
                return failed + self._attempt(slot, left)
            except FAILURES as error:
                reasons, gone = self._blamed(error, tuple(left))
            failures.update(list(reasons))
            for name in [name for name in reasons if name in gone or failures[name] == ATTEMPTS]:
                failed.append(Ack(name, slot.version, 0.0, reasons[name]))
                del left[name]
        return failed

    def _blamed(self, error: Exception, names: tuple[str, ...]) -> tuple[dict[str, str], set[str]]:
        """Leave the group. Why the attempt failed, by the actors whose fault that was, all where nobody can be named;
        and which of them there is no use in asking again."""
        client = self._clients[names]
        self._disconnect(names)
        gone = {error.actor} if isinstance(error, TransferFailed) and error.gone else set()
        # The others are let go by that; who does not answer now is what they were waiting for.
        silent = client.silent(RELEASE_S, apart_from=gone)
        reasons = dict.fromkeys(silent, first_line(error))
        if isinstance(error, TransferFailed) and error.actor in names:
            reasons[error.actor] = error.reason
        return reasons or dict.fromkeys(names, first_line(error)), gone.union(silent)

    def _attempt(self, slot: Slot, actors: dict[str, ActorHandle]) -> list[Ack]:
        started = time.monotonic()
        names = tuple(actors)
        if names not in self._senders:
            self._clients[names] = ActorsClient(actors, self._workers_per_engine, self._timeout_s, self._staged)
            self._clients[names].begin()
            self._senders[names] = connect(self._backend, self._clients[names])
        self._clients[names].begin()
        self._senders[names].send_weights()
        seconds = time.monotonic() - started
        return [Ack(name, slot.version, seconds) for name in names]

    def _disconnect(self, names: tuple[str, ...]) -> None:
        self._clients.pop(names, None)
        if sender := self._senders.pop(names, None):
            sender.shutdown()

    def _disconnect_all(self) -> None:
        for names in list(self._clients):
            self._disconnect(names)
