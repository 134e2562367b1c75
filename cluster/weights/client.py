"""vLLM's control plane over our actors: the calls of its weight-sync protocol, with names and time limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from cluster.weights.staging import StagedVersions
from contracts.errors import UserError, last_line

ALIVE_S = 30.0
"""Longest wait for a sign of life."""


class TransferFailed(Exception):
    """A transfer did not get through; ``actor``, one of the client's, is who failed."""

    def __init__(self, actor: str, reason: str) -> None:
        super().__init__(f"{actor}: {reason}")
        self.actor, self.reason = actor, reason


@dataclass
class ActorsClient:
    """``VLLMWeightSyncClient`` for several engines that each have workers of their own.

    vLLM's own Ray client gives every engine the same rank offset; here engine k's workers come after those of the
    engines before it.
    """

    actors: dict[str, ActorHandle]
    workers_per_engine: int
    timeout_s: float
    staged: StagedVersions
    """What is sent. vLLM's senders finish an update without saying which version it was, so it is read here: the label
    of the weights, and the digests they were sent with, by name (empty where the bytes have checksums)."""

    def check_alive(self) -> None:
        """Raises:
        TransferFailed: an actor is dead or does not answer: it would keep the others waiting in a rendezvous.
        """
        self._wait({name: actor.ready.remote() for name, actor in self.actors.items()}, min(self.timeout_s, ALIVE_S))

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

    def _wait(self, calls: dict[str, ray.ObjectRef], timeout_s: float | None = None) -> None:
        """Raises:
        UserError: the engines do not take the weights of this architecture.
        TransferFailed: any other failure of an actor.
        """
        timeout_s = timeout_s or self.timeout_s
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=timeout_s)
        for name, call in calls.items():
            try:
                ray.get(call, timeout=0)
            except ray.exceptions.GetTimeoutError as error:
                raise TransferFailed(name, f"no answer within {timeout_s:g} s") from error
            except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
                cause = getattr(error, "cause", None) or error
                if isinstance(cause, UserError):
                    raise cause from error  # no other actor and no second attempt would do better
                raise TransferFailed(name, last_line(cause)) from error
