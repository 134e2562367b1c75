"""Engines are compared with the learner where both hold the same weights, and one that is off is replaced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.token_table import TokenTable
from cluster.config.sections import WeightsConfig
from cluster.weights.parity import ROWS, TOKENS, ParityCheck
from cluster.workers.ray_calls import WorkerFailure
from support.fake_workers import FakeCalls, FakeWorker

TABLE = TokenTable.from_rows([([1, 3, 4], list(range(3, 3 + n))) for n in (4, 9, 400, 7, 8)])


class Pool:
    """Running actors; each answers ``score`` as the test says."""

    def __init__(self, **members: tuple[int, float | Exception]) -> None:
        """By name: version, and how far its log-probabilities are off, or why it gives none."""
        self._members, self._off = [], {}
        self.replaced: dict[str, str] = {}
        for name, (version, off) in members.items():
            self._members.append(SimpleNamespace(name=name, version=version, worker=FakeWorker(name)))
            self._off[name] = off

    def wait_for_version(self, version: int) -> None:
        self.waited_for = version

    def running(self) -> list[Any]:
        return self._members

    def answer(self, call: Any) -> Any:
        off = self._off[call.what.split(".")[0]]
        if isinstance(off, Exception):
            raise off
        return [np.full(3, -1.0 + off, np.float32)]

    def replace(self, member: Any, reason: str) -> None:
        self.replaced[member.name] = reason


def check(pool: Any) -> float:
    learner: Any = SimpleNamespace(score_ema=lambda sequences: [np.full(3, -1.0, np.float32)])
    return ParityCheck(WeightsConfig(canary_tolerance=0.05), TABLE, learner, pool).check(7)


def test_an_engine_that_is_off_is_replaced_and_the_others_are_not():
    pool = Pool(a=(7, 0.01), b=(7, 0.2))
    assert check(pool) == pytest.approx(0.2, abs=1e-6)
    assert list(pool.replaced) == ["b"] and "0.2 nats off" in pool.replaced["b"]
    assert pool.waited_for == 7


def test_an_actor_with_other_weights_is_not_judged():
    pool = Pool(a=(8, 5.0), b=(7, 0.0))
    assert check(pool) == 0.0
    assert not pool.replaced


def test_one_that_died_is_left_to_those_who_await_it():
    pool = Pool(a=(7, WorkerFailure("gone", died=True)), b=(7, 0.01))
    assert check(pool) == pytest.approx(0.01, abs=1e-6)
    assert not pool.replaced


def test_one_that_raises_is_no_silence():
    with pytest.raises(WorkerFailure, match="no such request"):
        check(Pool(a=(7, WorkerFailure("no such request", died=False))))


def test_few_rows_of_bounded_length_are_scored():
    seen: list[list[list[int]]] = []

    def score(sequences: list[list[int]]) -> list[Any]:
        seen.append(sequences)
        return [np.zeros(3, np.float32)]

    learner: Any = SimpleNamespace(score_ema=score)
    pool: Any = Pool()
    ParityCheck(WeightsConfig(), TABLE, learner, pool).check(1)
    assert len(seen[0]) == ROWS and max(map(len, seen[0])) == TOKENS
    assert seen[0][0] == [1, 3, 4, 3, 4, 5, 6]


@pytest.mark.parametrize(("every", "publish_every", "due"), [(0, 1, []), (3, 1, [3, 6]), (2, 2, [4, 8])])
def test_every_so_many_publications_are_checked(every: int, publish_every: int, due: list[int]):
    config = WeightsConfig(canary_every=every, publish_every=publish_every, max_staleness=1)
    nothing: Any = FakeCalls()
    check = ParityCheck(config, TABLE, nothing, nothing)
    published = range(publish_every, 9, publish_every)
    assert [step for step in published if check.due(step)] == due
