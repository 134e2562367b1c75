"""The ranks driven as one: shares of a batch, scores put back in order, weights sent from a lane of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.workers import learner_group as module
from cluster.workers.learner_group import DISK_LANE, WEIGHTS_LANE, LearnerGroup, Ranks, WeightSync
from cluster.workers.ray_calls import WorkerFailure
from contracts.errors import UserError
from contracts.pair import PreferencePair, ReferenceScore, supervised
from learner.messages import StepReport
from support.fake_workers import FakeCall, FakeCalls, FakeWorker


class Rank(FakeWorker):
    """Answers at once, by method; remembers the lanes of its calls."""

    NEVER = object()
    """As an answer: the call stays open."""

    def __init__(self, name: str, **answers: Any) -> None:
        super().__init__(name)
        self._answers = answers
        self.lanes: list[str | None] = []

    def call(self, method: str, *arguments: object, lane: str | None = None) -> FakeCall:
        call = super().call(method, *arguments, lane=lane)
        self.lanes.append(lane)
        answer = self._answers.get(method)
        result = answer(*arguments) if callable(answer) else answer
        if isinstance(result, Exception):
            call.fail(result)
        elif result is not self.NEVER:
            call.answer(result)
        return call


def group(*ranks: Rank, stall_s: float = 60.0) -> LearnerGroup:
    workers: Any = ranks
    placement: Any = None
    waits: list[Callable[[], None]] = [lambda: time.sleep(0.001)] * 2000
    calls = FakeCalls(*waits)
    return LearnerGroup(Ranks(workers, placement), calls, stall_s, logging.getLogger("test"), calls)


def pairs(*lengths: int) -> list[PreferencePair]:
    return [supervised(i, np.array([1], np.int32), np.zeros(n, np.int32)) for i, n in enumerate(lengths)]


def scored(share: list[PreferencePair], global_pairs: int) -> StepReport:
    """A score for every even pair, that says which."""
    scores = [ReferenceScore(p.index, np.zeros(5, np.float32)) if p.index % 2 == 0 else None for p in share]
    return StepReport({"loss": 0.5, "pairs": float(global_pairs)}, scores, [float(p.index) for p in share])


def test_a_batch_is_split_by_tokens_and_its_scores_come_back_in_its_order():
    ranks = [Rank("rank-0", step=scored), Rank("rank-1", step=scored)]
    done = group(*ranks).step(pairs(100, 10, 20, 30, 40))
    assert [score and score.version for score in done.scores] == [0, None, 2, None, 4]
    assert done.margins == [0, 1, 2, 3, 4]
    assert done.metrics == {"loss": 0.5, "pairs": 5.0}
    shares: list[Any] = [rank.calls[0][1][0] for rank in ranks]
    assert sorted(p.index for share in shares for p in share) == [0, 1, 2, 3, 4]
    assert sorted(sum(len(p.chosen) for p in share) for share in shares) == [100, 100]


def test_the_ranks_meet_where_rank_0_says_and_load_before_they_set_up():
    ranks = [Rank("rank-0", address=("10.0.0.1", 1234), setup="padded forward"), Rank("rank-1", setup="")]
    assert group(*ranks).setup() == "padded forward"
    for rank in ranks:
        met = [(method, arguments) for method, arguments, _ in rank.calls if method != "address"]
        assert met == [("rendezvous", ("10.0.0.1", 1234)), ("load_weights", ()), ("setup", ())]


def test_ranks_of_an_attempt_before_begin_again_and_are_not_set_up() -> None:
    ranks = [Rank("rank-0", begin_again="padded forward"), Rank("rank-1", begin_again="")]
    several = group(*ranks)
    several._group.loaded = True
    assert several.setup() == "padded forward"
    assert [[method for method, *_ in rank.calls] for rank in ranks] == [["begin_again"]] * 2


@pytest.mark.parametrize(
    ("answer", "serves"),
    [(None, True), (WorkerFailure("killed", died=True), False), (Rank.NEVER, False)],
    ids=["at rest", "one died", "one in a collective"],
)
def test_ranks_serve_the_next_attempt_where_all_are_at_rest(monkeypatch, answer: Any, serves: bool) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.05)
    ranks: Any = (Rank("rank-0"), Rank("rank-1", settled=answer))
    several = Ranks(ranks, Any)  # type: ignore[arg-type]
    calls = FakeCalls(*[lambda: time.sleep(0.001)] * 2000)
    assert not several.settle(calls), "they have not loaded the model"
    several.loaded = True
    assert several.settle(calls) == serves
    assert ranks[0].lanes == [None, WEIGHTS_LANE, DISK_LANE]


def test_ranks_that_failed_do_not_serve_again() -> None:
    broken = Rank("rank-0", step=WorkerFailure("OutOfMemoryError: 2 GiB", died=False))
    several = group(broken, Rank("rank-1", step=scored))
    several._group.loaded = True
    with pytest.raises(WorkerFailure):
        several.step(pairs(1, 2))
    assert not several._group.settle(FakeCalls())


def test_what_happens_elsewhere_while_ranks_are_waited_for_is_not_theirs() -> None:
    ranks: Any = (Rank("rank-0", step=Rank.NEVER), Rank("rank-1", step=Rank.NEVER))

    def shard_dies() -> None:
        raise WorkerFailure("shard-0: killed", died=True)

    several = Ranks(ranks, Any)  # type: ignore[arg-type]
    with pytest.raises(WorkerFailure, match="shard-0"):
        LearnerGroup(several, FakeCalls(shard_dies), 60.0, logging.getLogger("test")).step(pairs(1, 2))
    assert not several.failed


def test_a_rank_that_stands_still_while_held_out_rows_are_scored_is_given_up() -> None:
    stopped = Rank("rank-0", evaluate=Rank.NEVER, stacks="in a collective")
    with pytest.raises(WorkerFailure, match="rank-0: no answer to evaluate"):
        group(stopped, Rank("rank-1", evaluate={"loss": 1.0}), stall_s=0.02).evaluate(pairs(1, 2), chosen_only=False)


def test_a_rank_that_stands_still_while_the_model_is_loaded_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.workers.stacks.STACKS_S", 0.05)
    stopped = Rank("rank-0", address=("10.0.0.1", 1234), load_weights=Rank.NEVER, stacks=Rank.NEVER)
    with pytest.raises(WorkerFailure, match="rank-0: no sign of life while the model is loaded") as failure:
        group(stopped, Rank("rank-1", stacks="idle"), stall_s=0.02).setup()
    assert failure.value.died


def test_a_model_that_takes_long_to_load_is_waited_for_and_the_log_says_what_the_ranks_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    slow = Rank("rank-0", address=("10.0.0.1", 1234), load_weights=Rank.NEVER, stacks="in download", setup="")
    several = group(slow, Rank("rank-1", setup=""), stall_s=0.02)
    threading.Timer(0.1, lambda: slow.last("load_weights").answer()).start()
    several.setup()
    assert "the model is still being loaded" in caplog.text
    assert "in download" in caplog.text


def test_a_checkpoint_is_taken_by_all_ranks_and_waited_for_in_a_lane_of_its_own() -> None:
    ranks = [Rank("rank-0"), Rank("rank-1", written=UserError("learner rank 1: disk full"))]
    written = group(*ranks).save(Path("/c/step-4.tmp"), background=True)
    for rank in ranks:
        assert [call[:2] for call in rank.calls] == [("save", ("/c/step-4.tmp", True)), ("written", ())]
        assert rank.lanes == [None, DISK_LANE]
    with pytest.raises(UserError, match="learner rank 1: disk full"):
        written()


def test_a_rank_that_fails_fails_the_step():
    dead = Rank("rank-1", step=WorkerFailure("rank-1 was killed", died=True))
    with pytest.raises(WorkerFailure, match="rank-1 was killed"):
        group(Rank("rank-0", step=scored), dead).step(pairs(1, 2))


def test_weights_are_sent_by_rank_0_beside_training():
    first, second = Rank("rank-0", send=["ack"]), Rank("rank-1")
    workers: Any = (first, second)
    placement: Any = None
    sync = WeightSync(Ranks(workers, placement))
    actor: Any = FakeWorker("actor-0")
    sync.retarget({"actor-0": actor})
    sent: Any = sync.send()
    assert sent.result() == ["ack"]
    assert [(method, arguments) for method, arguments, _ in first.calls] == [
        ("retarget", ({"actor-0": "handle"},)),
        ("send", ()),
    ]
    assert first.lanes == [WEIGHTS_LANE] * 2 and not second.calls
