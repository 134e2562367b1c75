"""The learner group: DeepSpeed ranks as Ray actors in one placement group, driven as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config.run_config import RunConfig
from cluster.weights.publisher import Publisher
from cluster.workers.control import NAMESPACE
from cluster.workers.ray_session import Hardware, reserve
from contracts.errors import UserError
from contracts.pair import PreferencePair, ReferenceScore
from learner.model.packing import split_by_cost
from learner.rank import LearnerRank

# Two lanes: training calls run one after the other in "_default"; a publication is sent from "weights"
# while the next step already runs.
LANES = {"weights": 1}


@dataclass(frozen=True)
class GroupStep:
    """What one optimizer step of the whole group gave."""

    metrics: dict[str, float]
    scores: list[ReferenceScore | None]
    """Fresh reference log-probabilities, aligned with the pairs; None where the cached ones served."""


class LearnerGroup:
    """The ranks.

    ``wait`` is how answers are waited for: ``ray.get``, or something that does more meanwhile. ``publisher``, set
    before ``setup``, is what carries the weights; None where no actor runs.
    """

    def __init__(self, ranks: list[ActorHandle], placement: PlacementGroup) -> None:
        self.ranks = ranks
        self.wait: Callable[[ray.ObjectRef], Any] = ray.get
        self.publisher: Publisher | None = None
        self._placement = placement

    @classmethod
    def start(cls, config: RunConfig, hardware: Hardware, total_steps: int) -> LearnerGroup:
        """Place the ranks and start their processes; ``setup`` loads the model.

        Raises:
            UserError: the group can't be placed.
        """
        learner = config.learner
        gpu_share = 0.5 if config.cluster.colocate else 1.0
        bundle = {"CPU": learner.cpus_per_rank} | ({"GPU": gpu_share} if hardware.use_gpu else {})
        placement = reserve(
            [bundle] * learner.ranks,
            config.cluster.strategy,
            config.cluster,
            f"the learner group ({learner.ranks} ranks)",
        )
        actor = ray.remote(concurrency_groups=LANES)(LearnerRank)
        ranks = [
            actor.options(
                name=f"{config.name}-rank-{rank}",
                namespace=NAMESPACE,
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, rank),
                runtime_env={"env_vars": _environment(learner.threads_per_rank, hardware)},
            ).remote(
                rank=rank,
                world_size=learner.ranks,
                model=config.model,
                objective=config.objective,
                reference=config.reference,
                optimizer=config.optimizer,
                learner=learner,
                ema=config.ema,
                max_length=config.data.max_length,
                total_steps=total_steps,
                seed=config.seed,
            )
            for rank in range(learner.ranks)
        ]
        return cls(ranks, placement)

    def setup(self) -> str:
        """Form the process group and load the model; returns why the forward is not the shared one, or nothing.

        Raises:
            UserError: the model can't be loaded, or does not fit the config.
        """
        address, port = self._get(self.ranks[0].address.remote())
        self._all("rendezvous", address, port)
        note = self._all("setup")[0]
        if self.publisher is not None:
            self._all("attach", self.publisher)
        return note

    def step(self, pairs: list[PreferencePair]) -> GroupStep:
        """One optimizer step on a global batch, split over the ranks by token cost."""
        shares = split_by_cost(pairs, len(self.ranks))
        reports = self._get(
            [
                rank.step.remote([pairs[i] for i in share], len(pairs))
                for rank, share in zip(self.ranks, shares, strict=True)
            ]
        )
        scores: list[ReferenceScore | None] = [None] * len(pairs)
        for share, report in zip(shares, reports, strict=True):
            for position, score in zip(share, report.reference_scores, strict=True):
                scores[position] = score
        return GroupStep(reports[0].metrics, scores)

    def stage(self, version: int) -> None:
        """Gather the average on rank 0 for publication; the only part that holds up training."""
        self._all("stage", version)

    def send(self) -> ray.ObjectRef:
        """Start sending the newest staged weights from rank 0; the reference gives the acknowledgements."""
        return self.ranks[0].send.options(concurrency_group="weights").remote()

    def retarget(self, actors: dict[str, ActorHandle]) -> ray.ObjectRef:
        """Send to these actors from now on."""
        return self.ranks[0].retarget.options(concurrency_group="weights").remote(actors)

    def score_average(self, sequences: list[list[int]]) -> list[Any]:
        """Per-token log-probabilities under the average, float32 [tokens - 1] per sequence."""
        return self._all("score_average", sequences)[0]

    def save(self, folder: Path) -> None:
        self._all("save", str(folder))

    def load(self, folder: Path) -> None:
        self._all("load", str(folder))

    def export(self, folder: Path) -> None:
        self._all("export", str(folder))

    def shutdown(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)
        remove_placement_group(self._placement)

    def _all(self, method: str, *arguments: object) -> list[Any]:
        return self._get([getattr(rank, method).remote(*arguments) for rank in self.ranks])

    def _get(self, refs: Any) -> Any:
        """The answers; a rank's own complaint is handed on as it was."""
        try:
            return [self.wait(ref) for ref in refs] if isinstance(refs, list) else self.wait(refs)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"learner: a rank died ({reason}); go on from the last checkpoint with --resume") from error


def _environment(threads: int, hardware: Hardware) -> dict[str, str]:
    common = hardware.environment(threads) | {"TOKENIZERS_PARALLELISM": "false"}
    return common if hardware.use_gpu else common | {"DS_ACCELERATOR": "cpu"}
