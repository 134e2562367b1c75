"""vLLM's control plane over our actors: the calls of its weight-sync protocol, with names and time limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle

from cluster.weights.staging import StagedVersions
from contracts.errors import UserError, last_line

PING_S = 5.0
"""Between two questions for a sign of life, while something else is waited for."""
ALIVE_S = 30.0
"""Longest wait for a sign of life. A process whose engine is busy gives one all the same."""
GRACE_S = 3.0
"""After a first failure, how long a death is listened for: what it breaks is often noticed before."""


class TransferFailed(Exception):
    """A transfer did not get through; ``actor``, one of the client's, is who failed."""

    def __init__(self, actor: str, reason: str, *, gone: bool = False) -> None:
        """``gone``: it is dead, or gives no sign of life; there is no use in asking again."""
        super().__init__(f"{actor}: {reason}")
        self.actor, self.reason, self.gone = actor, reason, gone


def _nothing() -> None:
    pass


@dataclass
class ActorsClient:
    """``VLLMWeightSyncClient`` for several engines that each have workers of their own.

    vLLM's own Ray client gives every engine the same rank offset; here engine k's workers come after those of the
    engines before it.
    """

    actors: dict[str, ActorHandle]
    workers_per_engine: int
    timeout_s: float
    """Longest that joining, and then each transfer, may take in all."""
    staged: StagedVersions
    """What is sent. vLLM's senders finish an update without saying which version it was, so it is read here: the label
    of the weights, and the digests they were sent with, by name (empty where the bytes have checksums)."""
    when_failed: Callable[[], None] = _nothing
    """Lets go whoever waits for the actors elsewhere; called as soon as one of them has failed."""
    _deadline: float = field(default=0.0, init=False)
    _open: dict[str, ray.ObjectRef] = field(default_factory=dict, init=False)
    """Calls of the newest kind that have not been answered, by actor."""

    def begin(self) -> None:
        """From now on ``timeout_s`` counts."""
        self._deadline = time.monotonic() + self.timeout_s

    def silent(self, within_s: float, apart_from: Collection[str] = ()) -> list[str]:
        """Actors whose call is unanswered ``within_s`` after everybody was let go."""
        waiting = {name: call for name, call in self._open.items() if name not in apart_from}
        if not waiting:
            return []
        _, unanswered = ray.wait(list(waiting.values()), num_returns=len(waiting), timeout=within_s)
        return [name for name, call in waiting.items() if call in unanswered]

    def check_alive(self) -> None:
        """Raises:
        TransferFailed: an actor is dead or does not answer: it would keep the others waiting in a rendezvous.
        """
        self._wait(self._signs_of_life(list(self.actors)))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        calls = {}
        for number, (name, actor) in enumerate(self.actors.items()):
            own = dict(init_info)
            if "rank_offset" in own:
                own["rank_offset"] = init_info["rank_offset"] + number * self.workers_per_engine
            calls[name] = actor.init_weight_transfer_engine.remote(WeightTransferInitRequest(init_info=own))
        self._wait(calls)

    def start_weight_update(self) -> None:
        self._wait({name: actor.start_weight_update.remote() for name, actor in self.actors.items()})

    def update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        request = WeightTransferUpdateRequest(update_info=update_info)
        self._wait({name: actor.update_weights.remote(request) for name, actor in self.actors.items()})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        version = self.staged.slot.version if weight_version is None else int(weight_version)
        digests = {name: int(digest) for name, digest in self.staged.slot.digests.items()}
        self._wait({name: actor.finish_weight_update.remote(version, digests) for name, actor in self.actors.items()})

    def replace_weights(self, update_info: Any) -> None:
        """Start, update and finish in one call, for a sender that has nothing to do in between."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        request = WeightTransferUpdateRequest(update_info=update_info)
        version = self.staged.slot.version
        self._wait({name: actor.replace_weights.remote(request, version) for name, actor in self.actors.items()})

    def _signs_of_life(self, names: list[str]) -> dict[str, ray.ObjectRef]:
        return {name: self.actors[name].ready.remote() for name in names}

    def _wait(self, calls: dict[str, ray.ObjectRef]) -> None:
        """Until all have answered; the first failure ends the wait.

        Raises:
            UserError: the engines do not take the weights of this architecture.
            TransferFailed: any other failure of an actor.
            TimeoutError: several have not answered in time, and it can't be said whose fault it is.
        """
        self._open = dict(calls)
        try:
            self._wait_for_all()
        except Exception:
            self.when_failed()
            raise

    def _wait_for_all(self) -> None:
        signs: dict[str, ray.ObjectRef] = {}
        asked = time.monotonic()
        while self._open:
            if failures := self._answered(min(PING_S, self._deadline - time.monotonic())):
                raise self._most_telling(failures)
            now = time.monotonic()
            if self._open and now >= self._deadline:
                raise self._late()
            waiting = [name for name, sign in signs.items() if name in self._open and not _answered(sign)]
            if not waiting:
                signs, asked = self._signs_of_life(list(self._open)), now
            elif now - asked > ALIVE_S:
                raise TransferFailed(waiting[0], f"no sign of life for {ALIVE_S:g} s", gone=True)

    def _late(self) -> Exception:
        reason = f"no answer within {self.timeout_s:g} s"
        if len(self._open) == 1:
            return TransferFailed(next(iter(self._open)), reason)
        return TimeoutError(f"{reason}: {', '.join(self._open)}")

    def _answered(self, within_s: float) -> list[Exception]:
        """Take the answers that are there within that time, or the first of them; returns those that are failures."""
        done, _ = ray.wait(list(self._open.values()), num_returns=1, timeout=max(0.0, within_s))
        failures: list[Exception] = []
        for name in [name for name, call in self._open.items() if call in done]:
            try:
                ray.get(self._open.pop(name))
            except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
                cause = getattr(error, "cause", None) or error
                died = isinstance(error, ray.exceptions.RayActorError)
                # A UserError counts for every actor, and a second attempt would not do better.
                failed = cause if isinstance(cause, UserError) else TransferFailed(name, last_line(cause), gone=died)
                failures.append(failed)
        return failures

    def _most_telling(self, failures: list[Exception]) -> Exception:
        """A user's error, else a death, else what came first."""
        until = time.monotonic() + GRACE_S
        while self._open and not any(map(_is_a_cause, failures)) and time.monotonic() < until:
            failures += self._answered(until - time.monotonic())
        return next(filter(_is_a_cause, failures), failures[0])


def _answered(call: ray.ObjectRef) -> bool:
    return bool(ray.wait([call], timeout=0)[0])


def _is_a_cause(failure: Exception) -> bool:
    """Rather than a consequence of another actor's failure."""
    return isinstance(failure, UserError) or (isinstance(failure, TransferFailed) and failure.gone)
