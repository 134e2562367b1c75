"""Log-probability parity check: the engines' log-probabilities of a few fixed rows against the learner's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from actors.token_table import TokenTable
from cluster.config.sections import WeightsConfig
from cluster.weights.judgement import Difference, Evidence, Scores, evidence, fault, typical
from cluster.workers.actor_pool import LOOK_S, ActorPool
from cluster.workers.member import Member
from cluster.workers.ray_calls import Call, WorkerFailure

TOKENS = 1024
"""Of all rows together at least, where the dataset has them: enough for a 99 % quantile."""
ROWS = 32
"""At most."""
ROW_TOKENS = 256
"""Of each row at most. On CPU the prefix cache keeps blocks of 128 tokens; shorter rows can't show that it is stale."""


class Scorer(Protocol):
    """The learner's side."""

    def score_ema(self, sequences: list[list[int]]) -> Scores: ...


def choose_sequences(table: TokenTable, longest: int) -> list[list[int]]:
    """The first rows of the dataset, each cut to at most ``longest`` and ``ROW_TOKENS`` tokens. None where that leaves
    no token to score after another."""
    if longest < 2:
        return []
    sequences: list[list[int]] = []
    for number in range(min(ROWS, len(table))):
        row = table[number]
        sequences.append(np.concatenate((row.prompt, row.response))[: min(longest, ROW_TOKENS)].tolist())
        if sum(map(len, sequences)) >= TOKENS:
            break
    return sequences


class ParityCheck:
    """Compares learner and engines after a publication, when both sides speak of the same weights.

    The first publication of an attempt calibrates: what the two are apart then is rounding, unless it is over the
    dtype's ceiling. Later ones are judged by it.
    """

    def __init__(
        self,
        config: WeightsConfig,
        dtype: str,
        sequences: list[list[int]],
        learner: Scorer,
        pool: ActorPool,
        log: logging.Logger,
        ending: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            ending: whether the run was asked to end: it waits for no actor any more.
            dtype: ``float32`` or ``bfloat16``, of both sides' arithmetic.
            sequences: token ids of the rows that are compared, see ``choose_sequences``.
        """
        self._config, self._dtype, self._sequences = config, dtype, sequences
        self._learner, self._pool, self._log, self._ending = learner, pool, log, ending
        self._calibrated: dict[str, Difference] = {}
        """By actor."""
        self._previous: Scores | None = None
        """The learner's at the last check."""
        self._ahead: Scores | None = None
        """The learner's for the next one."""

    def score_ahead(self) -> None:
        """Ask the learner now, before it stages the version of the next check: it will not be there then."""
        if self._config.parity_every:
            self._ahead = self._learner.score_ema(self._sequences)

    def calibrate(self, version: int) -> None:
        """Measure the rounding between the learner and every actor that holds ``version``, the first of an attempt. An
        actor over the ceiling is replaced."""
        if not (self._config.parity_every and self._sequences):
            return
        for member, found in self._compare(version):
            if reason := fault(found, None, self._dtype, self._config.parity_factor):
                self._pool.replace(member, reason)
                continue
            off = self._calibrated[member.name] = found.to_learner
            self._log.debug(
                "parity of %s at the start: mean %.3g, 99 %% %.3g, largest %.3g nats",
                *(member.name, off.mean, off.p99, off.largest),
            )

    def due(self, step: int) -> bool:
        """Whether the publication of ``step`` is to be checked."""
        every = self._config.parity_every if self._sequences else 0
        return bool(every) and step // self._config.publish_every % every == 0

    def check(self, version: int) -> dict[str, float]:
        """Judge every actor that holds ``version``; one that is off is replaced. An actor that joined after the
        calibration is judged by the others'.

        Returns:
            Metrics: mean, 99 % quantile and largest |Δ log p| in nats, each the largest over the actors.
        """
        seen: list[Evidence] = []
        anyone = typical(list(self._calibrated.values()))
        for member, found in self._compare(version):
            seen.append(found)
            calibrated = self._calibrated.get(member.name, anyone)
            if reason := fault(found, calibrated, self._dtype, self._config.parity_factor):
                self._pool.replace(member, reason)
        if not seen:
            return {}
        return {
            "weights/parity_mean_nats": max(e.to_learner.mean for e in seen),
            "weights/parity_p99_nats": max(e.to_learner.p99 for e in seen),
            "weights/parity_max_nats": max(max(e.to_learner.largest, e.after_cache) for e in seen),
        }

    def _compare(self, version: int) -> Iterator[tuple[Member, Evidence]]:
        """The actors that hold ``version``, with what they say; those that died meanwhile are left out, and those that
        have said nothing when the run is asked to end."""
        self._pool.wait_for_version(version, unless=self._ending)
        members = [m for m in self._pool.running() if m.version == version and m.worker]
        if not members:  # a run that is asked to end has them no more
            return
        # What was cached under older weights is asked for first: the other scores fill the cache anew.
        after_cache = [(m, m.worker.call("score_last", self._sequences)) for m in members if m.worker]
        ours = self._learner.score_ema(self._sequences) if self._ahead is None else self._ahead
        previous, self._previous, self._ahead = self._previous, ours, None
        lasts = self._answers(after_cache)
        scores = self._answers([(m, m.worker.call("score", self._sequences)) for m, _ in lasts if m.worker])
        last_of = {m.name: last for m, last in lasts}
        for member, theirs in scores:
            yield member, evidence(ours, theirs, last_of[member.name], previous)

    def _answers(self, calls: list[tuple[Member, Call]]) -> list[tuple[Member, Any]]:
        answers: list[tuple[Member, Any]] = []
        for member, call in calls:
            while not (done := self._pool.first_done([call], LOOK_S)) and not self._ending():
                pass  # the pool looks after its actors: one that stands still is replaced, which ends the wait
            if not done:
                break
            try:
                answers.append((member, self._pool.answer(call)))
            except WorkerFailure as failure:
                if not failure.died:
                    raise
                continue  # its death is handled where its ``run`` is awaited
        return answers
