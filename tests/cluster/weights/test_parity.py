"""Engines are compared with the learner where both hold the same weights, and one that is off is replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.token_table import TokenTable
from cluster.config.sections import WeightsConfig
from cluster.weights.parity import ROW_TOKENS, ROWS, TOKENS, ParityCheck, choose_sequences
from cluster.workers.ray_calls import WorkerFailure
from support.fake_workers import FakeCalls, FakeWorker

SEQUENCES = [[3, 4, 5, 6], [7, 8, 9, 10]]
LOG = logging.getLogger(__name__)


class Pool:
    """Running actors; each answers ``score`` and ``score_last`` as the test says."""

    def __init__(self, **members: tuple[int, float | Exception]) -> None:
        """By name: version, and how far its log-probabilities are off, or why it gives none."""
        self._members: list[Any] = []
        self._off: dict[str, float | Exception] = {}
        self.after_cache: dict[str, float] = {}
        """By name: how far the token after a cached prefix is off, if otherwise."""
        self.calls: list[str] = []
        self.replaced: dict[str, str] = {}
        self.silent: list[str] = []
        """Calls that are never answered."""
        self.set(**members)

    def set(self, **members: tuple[int, float | Exception]) -> None:
        self._members = [SimpleNamespace(name=n, version=v, worker=FakeWorker(n)) for n, (v, _) in members.items()]
        self._off = {name: off for name, (_, off) in members.items()}

    def wait_for_version(self, version: int, unless: Callable[[], bool]) -> None:
        self.waited_for = version
        if self.silent and unless():
            self._members = []

    def first_done(self, calls: list[Any], timeout_s: float) -> list[Any]:
        (call,) = calls
        return [] if call.what in self.silent else calls

    def running(self) -> list[Any]:
        return self._members

    def answer(self, call: Any) -> Any:
        name, _, method = call.what.partition(".")
        self.calls.append(method)
        off = self._off[name]
        if isinstance(off, Exception):
            raise off
        if method == "score_last":
            return np.full(2, -1.0 + self.after_cache.get(name, off), np.float32)
        return [np.full(3, -1.0 + off, np.float32)] * 2

    def replace(self, member: Any, reason: str) -> None:
        self.replaced[member.name] = reason


def parity(
    pool: Any,
    dtype: str = "bfloat16",
    drift: float = 0.0,
    ending: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> ParityCheck:
    """``drift``: by how much the learner's log-probabilities fall between two checks."""
    scored: list[int] = []

    def score_ema(sequences: list[list[int]]) -> list[Any]:
        scored.append(1)
        return [np.full(3, -1.0 - drift * (len(scored) - 1), np.float32)] * len(sequences)

    learner: Any = SimpleNamespace(score_ema=score_ema)
    return ParityCheck(WeightsConfig(**changes), dtype, SEQUENCES, learner, pool, LOG, ending)


def test_an_engine_that_is_off_by_more_than_at_the_start_is_replaced_and_the_others_are_not():
    pool = Pool(a=(0, 0.05), b=(0, -0.04))
    check = parity(pool)
    check.calibrate(0)
    assert not pool.replaced and pool.waited_for == 0
    pool.set(a=(7, 0.06), b=(7, 0.2))
    metrics = check.check(7)
    assert list(pool.replaced) == ["b"]
    assert "0.2 nats per token off the learner's" in pool.replaced["b"] and "allowed are 0.14" in pool.replaced["b"]
    assert pool.waited_for == 7
    assert metrics == {
        "weights/parity_mean_nats": pytest.approx(0.2),
        "weights/parity_p99_nats": pytest.approx(0.2),
        "weights/parity_max_nats": pytest.approx(0.2),
    }


def test_an_engine_that_is_wrong_from_the_start_is_replaced_and_calibrates_nothing():
    pool = Pool(a=(0, 0.5), b=(0, 0.04))
    check = parity(pool)
    check.calibrate(0)
    assert list(pool.replaced) == ["a"] and "allowed are 0.25" in pool.replaced["a"]
    pool.set(b=(7, 0.04), c=(7, 0.3))
    check.check(7)
    assert list(pool.replaced) == ["a", "c"]


def test_a_run_that_is_asked_to_end_waits_for_nobody_s_scores():
    looks: list[int] = []

    def ending() -> bool:
        looks.append(1)
        return len(looks) > 2  # asked while the first is waited for

    pool = Pool(a=(7, 0.05), b=(7, 0.05))
    pool.silent = ["b.score_last"]
    metrics = parity(pool, ending=ending).check(7)
    assert not pool.replaced
    assert metrics["weights/parity_max_nats"] == pytest.approx(0.05)
    pool = Pool(a=(6, 0.05))
    pool.silent = ["anything"]
    assert parity(pool, ending=lambda: True).check(7) == {}
    assert pool.calls == []


def test_one_that_joined_later_is_judged_by_the_calibration_of_the_others():
    pool = Pool(a=(0, 0.01))
    check = parity(pool)
    check.calibrate(0)
    pool.set(a=(7, 0.01), joined=(7, 0.04), wrong=(7, 0.06))
    check.check(7)
    assert list(pool.replaced) == ["wrong"] and "allowed are 0.05 " in pool.replaced["wrong"]


def test_without_any_calibration_the_ceiling_of_the_dtype_judges():
    pool = Pool(a=(7, 0.2), b=(7, 0.3))
    parity(pool).check(7)
    assert list(pool.replaced) == ["b"]


def test_weights_of_the_check_before_are_found_however_little_they_differ():
    pool = Pool(a=(0, 1e-6), b=(0, 1e-6))
    check = parity(pool, "float32", drift=3e-5)
    check.calibrate(0)
    pool.set(a=(7, 1e-6), b=(7, 1e-6 - 3e-5))
    check.check(7)
    assert list(pool.replaced) == ["a"] and "older than it says" in pool.replaced["a"]


def test_what_the_prefix_cache_holds_is_asked_for_before_other_scores_fill_it():
    pool = Pool(a=(0, 0.05), b=(0, 0.05))
    check = parity(pool)
    check.calibrate(0)
    pool.after_cache["b"] = 2.0
    pool.set(a=(7, 0.05), b=(7, 0.05))
    metrics = check.check(7)
    assert pool.calls[-4:] == ["score_last", "score_last", "score", "score"]
    assert list(pool.replaced) == ["b"] and "prefix cache" in pool.replaced["b"]
    assert metrics["weights/parity_max_nats"] == pytest.approx(2.0)


def test_an_actor_with_other_weights_is_not_judged():
    pool = Pool(a=(8, 5.0), b=(7, 0.0))
    assert parity(pool).check(7)["weights/parity_mean_nats"] == 0.0
    assert not pool.replaced


def test_one_that_died_is_left_to_those_who_await_it():
    pool = Pool(a=(7, WorkerFailure("gone", died=True)), b=(7, 0.01))
    assert parity(pool).check(7)["weights/parity_mean_nats"] == pytest.approx(0.01, abs=1e-6)
    assert not pool.replaced


def test_where_nobody_is_compared_nothing_is_reported():
    assert parity(Pool(a=(8, 0.0))).check(7) == {}


def test_one_that_raises_is_no_silence():
    with pytest.raises(WorkerFailure, match="no such request"):
        parity(Pool(a=(7, WorkerFailure("no such request", died=False)))).check(7)


def test_a_run_without_checks_is_not_calibrated():
    pool = Pool(a=(0, 0.5))
    parity(pool, parity_every=0).calibrate(0)
    assert not pool.calls


def table(*responses: int) -> TokenTable:
    return TokenTable.from_rows([([1, 3, 4], list(range(3, 3 + n))) for n in responses])


def test_the_first_rows_are_compared_until_they_have_enough_tokens():
    rows = choose_sequences(table(4, 9, 400, 7, *[300] * 9), longest=512)
    assert [len(row) for row in rows] == [7, 12, ROW_TOKENS, 10, *[ROW_TOKENS] * 3]
    assert sum(map(len, rows)) >= TOKENS
    assert rows[0] == [1, 3, 4, 3, 4, 5, 6]


def test_few_rows_are_compared_and_none_is_longer_than_an_engine_takes():
    rows = choose_sequences(table(*[40] * 50), longest=31)
    assert len(rows) == ROWS and {len(row) for row in rows} == {31}


@pytest.mark.parametrize("longest", [1, 2, 8, 9])
def test_rows_of_exactly_the_longest_length_leave_the_engine_its_token(longest: int):
    rows = choose_sequences(table(5, 6), longest=longest)  # of 8 and 9 tokens
    assert all(2 <= len(row) <= longest for row in rows)
    assert bool(rows) == (longest > 1), "one token has nothing before it that scores it"
    pool: Any = Pool(a=(0, 0.5))
    if not rows:
        learner: Any = SimpleNamespace()
        check = ParityCheck(WeightsConfig(), "float32", rows, learner, pool, LOG)
        check.calibrate(0)
        assert not check.due(1) and not pool.calls


@pytest.mark.parametrize(("every", "publish_every", "due"), [(0, 1, []), (3, 1, [3, 6]), (2, 2, [4, 8])])
def test_every_so_many_publications_are_checked(every: int, publish_every: int, due: list[int]):
    config = WeightsConfig(parity_every=every, publish_every=publish_every, max_staleness=1)
    nothing: Any = FakeCalls()
    check = ParityCheck(config, "float32", SEQUENCES, nothing, nothing, LOG)
    published = range(publish_every, 9, publish_every)
    assert [step for step in published if check.due(step)] == due
