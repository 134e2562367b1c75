"""The learner group: DeepSpeed ranks as Ray actors in one placement group, driven as one."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.config.run_config import RunConfig
from cluster.weights.publisher_spec import PublisherSpec
from cluster.workers.patience import Patience
from cluster.workers.ray_calls import TICK_S, Call, Calls, Placement, RayCalls, Worker, WorkerFailure, wait_for_all
from cluster.workers.resources import Hardware, rank_bundle, rank_share
from cluster.workers.specs import rank_spec
from cluster.workers.stacks import log_stacks
from contracts.errors import UserError
from contracts.pair import PreferencePair, ReferenceScore
from learner.messages import StepReport
from learner.model.packing import split_by_cost
from learner.rank import LearnerRank

SETTLE_S = 15.0
"""Longest wait for ranks to finish what they were at when another part of the run died."""
WEIGHTS_LANE = "weights"
"""Training calls run one after the other in a rank's default lane; a publication is sent from this one, while the next
step already runs."""


DISK_LANE = "disk"
"""And here a checkpoint is waited for, which is written meanwhile."""
LOOK_LANE = "look"
"""Here a rank says what it is doing, whatever the others are stuck in."""


@dataclass(frozen=True)
class GroupStep:
    """What one optimizer step of the whole group gave."""

    metrics: dict[str, float]
    scores: list[ReferenceScore | None]
    """Fresh reference log-probabilities, aligned with the pairs; None where the cached ones served."""
    margins: list[float | None]
    """Reward margins, aligned with the pairs; None where the objective has none."""


@dataclass
class Ranks:
    """The ranks' processes and their place."""

    workers: tuple[Worker, ...]
    placement: Placement
    failed: bool = False
    """Whether one of them failed: then all are of no more use."""
    loaded: bool = False
    """Whether they have met and hold the model, from an attempt before."""

    @classmethod
    def start(
        cls,
        config: RunConfig,
        hardware: Hardware,
        total_steps: int,
        label: str,
        publisher: PublisherSpec | None = None,
        *,
        ends: tuple[int, ...],
        vocabulary: int = 0,
    ) -> Ranks:
        """Place the ranks and start their processes; ``LearnerGroup.setup`` loads the model.

        Args:
            label: with which the ranks' names on the cluster begin.
            publisher: what carries weights to the actors; None where there are none.
            ends: token ids that end a response.
            vocabulary: rows that the embeddings must have, where tokens are added.

        Raises:
            UserError: the group can't be placed.
        """
        learner = config.learner
        bundles = [rank_bundle(config, use_gpu=hardware.use_gpu)] * learner.ranks
        takes = rank_share(config, use_gpu=hardware.use_gpu)
        placement = Placement.ask(bundles, config.cluster.strategy, f"{label}-learner")
        purpose = f"the learner group ({learner.ranks} ranks, {config.cluster.strategy})"
        placement.require(config.cluster.start_timeout_s, purpose)
        spec = rank_spec(
            config, total_steps, ends=ends, vocabulary=vocabulary, adapters_alone=config.publishes_adapters
        )
        workers = tuple(
            placement.start(
                LearnerRank,
                rank,
                learner.ranks,
                spec,
                publisher.build if publisher else None,
                name=f"{label}-rank-{rank}",
                seat=rank,
                takes=takes,
                environment=_environment(learner.threads_per_rank, hardware),
                lanes={WEIGHTS_LANE: 1, DISK_LANE: 1, LOOK_LANE: 1},
            )
            for rank in range(learner.ranks)
        )
        return cls(workers, placement)

    def settle(self, calls: Calls) -> bool:
        """After another part of the run failed: whether the ranks are all there and at rest, so that the next attempt
        can have them."""
        if self.failed or not self.loaded:
            return False
        lanes = (None, WEIGHTS_LANE, DISK_LANE)
        try:
            wait_for_all([rank.call("settled", lane=lane) for rank in self.workers for lane in lanes], calls, SETTLE_S)
        except (UserError, WorkerFailure):
            return False
        return True

    def shutdown(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.placement.remove()


class WeightSync:
    """Between learner group and actor pool: names the actors that weights go to, and sends what the ranks have staged.

    Its calls go to rank 0's own lane, in order and beside training.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._sender = ranks.workers[0]

    def retarget(self, actors: dict[str, Worker]) -> None:
        """Send to these actors from now on."""
        handles = {name: worker.handle for name, worker in actors.items()}
        self._sender.call("retarget", handles, lane=WEIGHTS_LANE)

    def send(self) -> Call:
        """Start sending the newest staged weights; the answer is a list of Ack."""
        return self._sender.call("send", lane=WEIGHTS_LANE)

    def stacks(self) -> tuple[str, Call]:
        """Who sends, and a call that answers what it is doing."""
        return self._sender.name, self._sender.call("stacks", lane=LOOK_LANE)


class LearnerGroup:
    """The ranks, driven together.

    A call that takes much longer than it ever took is given up, with the ranks' stacks in the log: a process that
    stands still is as lost as one that is gone.
    """

    def __init__(
        self, ranks: Ranks, calls: Calls, stall_s: float, log: logging.Logger, beside: Calls | None = None
    ) -> None:
        """
        Args:
            calls: how answers are waited for, and what is looked after meanwhile.
            stall_s: nothing is given up sooner, in seconds.
            beside: how answers are waited for in another thread; default: Ray's own way.
        """
        self._group, self._ranks = ranks, ranks.workers
        self._calls, self._log, self._beside = calls, log, beside or RayCalls()
        self._stall_s = stall_s
        self._patience: defaultdict[str, Patience] = defaultdict(lambda: Patience(stall_s))

    def setup(self, phase: Callable[[str], AbstractContextManager[Any]] = nullcontext) -> str:
        """Form the process group and load the model; returns why the forward is not the shared one, or nothing. Ranks
        of an attempt before have both.

        The ranks meet here after loading, not in a collective with its time limit: one may have a model to download
        that others find on their disks.

        Args:
            phase: entered with the name of each part of it.

        Raises:
            UserError: the model can't be loaded, or does not fit the config.
        """
        if self._group.loaded:
            with phase("the ranks begin again"):
                return str(self._all("begin_again")[0])
        with phase("starting the ranks' processes"):
            address, port = self._answers("address", [self._ranks[0].call("address")])[0]
        with phase("ranks meet"):
            self._all("rendezvous", address, port)
        with phase("ranks load the model"):
            self._load_weights()
        with phase("setting up DeepSpeed"):
            note: str = self._all("setup")[0]
        self._group.loaded = True
        return note

    def step(self, pairs: list[PreferencePair]) -> GroupStep:
        """One optimizer step on a global batch, split over the ranks by token cost."""
        shares = split_by_cost(pairs, len(self._ranks))
        calls = [
            rank.call("step", [pairs[i] for i in share], len(pairs))
            for rank, share in zip(self._ranks, shares, strict=True)
        ]
        reports: list[StepReport] = self._answers("step", calls)
        scores: list[ReferenceScore | None] = [None] * len(pairs)
        margins: list[float | None] = [None] * len(pairs)
        for share, report in zip(shares, reports, strict=True):
            for position, score, margin in zip(share, report.reference_scores, report.margins, strict=True):
                scores[position], margins[position] = score, margin
        return GroupStep(reports[0].metrics, scores, margins)

    def evaluate(self, pairs: list[PreferencePair], *, chosen_only: bool) -> dict[str, float]:
        """Loss and metrics of the policy on pairs that are not trained on.

        Args:
            chosen_only: the pairs have no rejected half.
        """
        shares = split_by_cost(pairs, len(self._ranks))
        calls = [
            rank.call("evaluate", [pairs[i] for i in share], len(pairs), chosen_only)
            for rank, share in zip(self._ranks, shares, strict=True)
        ]
        found: dict[str, float] = self._answers("evaluate", calls)[0]
        return found

    def stage(self, version: int) -> None:
        """Gather the EMA on rank 0 for publication; the only part that holds up training."""
        self._all("stage", version)

    def sleep(self) -> None:
        """The ranks leave their GPUs to the engines (``cluster.colocate``)."""
        self._all("sleep")

    def wake(self) -> None:
        """The ranks come back to their GPUs, which the engines have left."""
        self._all("wake")

    def score_ema(self, sequences: list[list[int]]) -> list[NDArray[np.float32]]:
        """Log-probabilities in nats under the EMA, float32 [tokens - 1] per sequence."""
        scores: list[NDArray[np.float32]] = self._all("score_ema", sequences)[0]
        return scores

    def save(self, folder: Path, *, background: bool) -> Callable[[], object]:
        """Begin a checkpoint of the present step in ``folder``: the ranks' states, policy and EMA.

        Args:
            background: copy everything to the host, and write beside the next steps.

        Returns:
            What waits until it is written. It may be called in another thread, and raises ``UserError`` or
            ``WorkerFailure`` where a rank could not write.
        """
        self._all("save", str(folder), background)
        calls = [rank.call("written", lane=DISK_LANE) for rank in self._ranks]
        return partial(wait_for_all, calls, self._beside)

    def load(self, folder: Path) -> None:
        """Go on from the checkpoint in ``folder``."""
        self._all("load", str(folder))

    def log_stacks(self, why: str, others: Mapping[str, Call] = MappingProxyType({})) -> list[str]:
        """What the ranks are doing, to the log, and the ``others`` beside them; returns the names of those that give no
        sign of life."""
        asked = {rank.name: rank.call("stacks", lane=LOOK_LANE) for rank in self._ranks}
        return log_stacks(asked | dict(others), self._calls, self._log, why)

    def _load_weights(self) -> None:
        """The model may have to be downloaded, for as long as that takes: only a rank without a sign of life is given
        up."""
        calls = [rank.call("load_weights") for rank in self._ranks]
        looked = time.monotonic()
        while calls[0] not in self._calls.first_done(calls[:1], TICK_S):
            if time.monotonic() - looked < self._stall_s:
                continue
            self._log.info("the model is still being loaded; run.log has what the ranks are doing")
            if silent := self.log_stacks("is loading the model"):
                raise WorkerFailure(f"{', '.join(silent)}: no sign of life while the model is loaded", died=True)
            looked = time.monotonic()
        self._answers("load_weights", calls)  # the others make a skeleton

    def _all(self, method: str, *arguments: object) -> list[Any]:
        return self._answers(method, [rank.call(method, *arguments) for rank in self._ranks])

    def _answers(self, method: str, calls: list[Call]) -> list[Any]:
        patience = self._patience[method]
        started, limit_s = time.monotonic(), patience.limit_s
        of_ranks = _Blaming(self._calls, self._group)
        answers = wait_for_all(calls, of_ranks, limit_s, lambda missing: self._overdue(method, limit_s, missing))
        patience.observe(time.monotonic() - started)
        return answers

    def _overdue(self, method: str, limit_s: float, missing: list[int]) -> str:
        """Why the group is given up; what its ranks are doing goes to the log."""
        self._group.failed = True
        self.log_stacks(f"after {limit_s:.0f} s in {method}")
        names = ", ".join(self._ranks[position].name for position in missing)
        return f"{names}: no answer to {method} within {limit_s:.0f} s; stacks are in run.log"


class _Blaming:
    """Waits for calls of ranks, and notes when one of them failed: who looks after other parts meanwhile may raise
    their failures here too."""

    def __init__(self, calls: Calls, ranks: Ranks) -> None:
        self._calls, self._ranks = calls, ranks

    def first_done(self, calls: Sequence[Call], timeout_s: float) -> list[Call]:
        return self._calls.first_done(calls, timeout_s)

    def answer(self, call: Call) -> Any:
        try:
            return self._calls.answer(call)
        except WorkerFailure as failure:
            self._ranks.failed |= not failure.elsewhere
            raise


def _environment(threads: int, hardware: Hardware) -> dict[str, str]:
    common = hardware.environment(threads) | {"TOKENIZERS_PARALLELISM": "false"}
    return common if hardware.use_gpu else common | {"DS_ACCELERATOR": "cpu"}
