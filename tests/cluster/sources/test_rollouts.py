"""The two clocks, without Ray: who waits for which version, what is published when, what is drawn ahead."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from buffer.client import Draw
from buffer.messages import BufferStats
from cluster.config.run_config import RunConfig
from cluster.reports.activity import Activity
from cluster.sources.rollouts import RolloutSource
from contracts.errors import UserError
from contracts.pair import ReferenceScore, supervised
from support.fake_workers import FakeCall

TOTAL = 8


class World:
    """Everything that a source talks to, as a list of what was done to it."""

    def __init__(self, *, colocate: bool = False, **weights: Any) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.held, self.stats = 0, BufferStats(inserted=1)
        self.waiting = False
        """Whether draws are answered only after one look around."""
        self.ending = self.slow = False
        """Whether the run is asked to end; whether weights do not arrive and no pairs come."""
        values = {
            "model": {"path": "m"},
            "data": {"path": "d"},
            "weights": weights,
            "learner": {"batch_size": 2},
            "cluster": {"colocate": colocate},
        }
        world: Any = self
        parity: Any = SimpleNamespace(
            due=lambda step: step == 4,
            check=self.check,
            calibrate=self.calibrate,
            score_ahead=lambda: self.events.append(("score ahead",)),
        )
        activity = Activity(logging.getLogger("run"), Console())
        self.source = RolloutSource(
            RunConfig.model_validate(values), 10, world, world, world, parity, activity, self.asked
        )

    def asked(self) -> bool:
        return self.ending

    # the actor pool
    def wait_for_version(self, version: int, unless: Any = None) -> None:
        self.events.append(("wait for", version))
        if self.slow and self.held < version:
            assert unless and unless(), "would wait for ever"
            return
        self.held = max(self.held, version)

    def dismiss_all(self) -> None:
        self.events.append(("dismiss",))
        self.held = -1

    def held_version(self) -> int:
        return self.held

    def publish(self) -> None:
        self.events.append(("publish",))

    def poll(self) -> None:
        pass

    def clear_gpus(self) -> None:
        self.events.append(("engines leave",))

    def use_gpus(self) -> None:
        self.events.append(("engines may come",))

    def statuses(self) -> list[Any]:
        self.events.append(("status",))
        return [SimpleNamespace(idle_s=1.5), SimpleNamespace(idle_s=2.0)]

    def first_done(self, calls: list[FakeCall], timeout_s: float) -> list[FakeCall]:
        if self.waiting:
            self.waiting = False
            return []
        return [call for call in calls if call.done]

    def answer(self, call: FakeCall) -> Any:
        return call.result()

    # the learner group
    def stage(self, version: int) -> None:
        self.events.append(("stage", version))

    def sleep(self) -> None:
        self.events.append(("learner leaves",))

    def wake(self) -> None:
        self.events.append(("learner comes",))

    # the buffer
    def draw_ref(self) -> FakeCall:
        self.events.append(("draw",))
        self.drawing = FakeCall("draw")
        if not self.slow:
            self.drawing.answer("drawn")
        return self.drawing

    def withdraw_draws(self) -> None:
        self.events.append(("withdraw",))
        if not self.drawing.done:
            self.drawing.answer(None)

    def resolve(self, answer: str) -> Draw:
        pairs = [supervised(i, np.array([1], np.int32), np.array([2], np.int32)) for i in range(2)]
        zeros = np.zeros(2, np.int64)
        return Draw(pairs, np.array([7, 8]), zeros, zeros, zeros, self.stats)

    def annotate(self, keys: np.ndarray, scores: list[ReferenceScore]) -> None:
        self.events.append(("annotate", keys.tolist(), [score.version for score in scores]))

    def advance(self, step: int, published: int) -> None:
        self.events.append(("advance", step, published))

    def calibrate(self, version: int) -> None:
        self.events.append(("calibrate", version))

    def check(self, version: int) -> dict[str, float]:
        self.events.append(("check", version))
        return {}

    def run(self, first: int = 0, last: int = TOTAL) -> list[tuple[Any, ...]]:
        self.source.begin(first, TOTAL)
        for step in range(first, last):
            batch = self.source.next(step)
            assert batch
            self.source.stepped(step + 1, batch, [None, None])
        return self.events

    def of(self, kind: str) -> list[Any]:
        return [event[-1] for event in self.events if event[0] == kind]


def test_lockstep_publishes_every_step_and_waits_for_it_before_the_next():
    world = World(max_staleness=0)
    events = world.run(last=2)
    assert events == [
        ("stage", 0),
        ("publish",),
        ("wait for", 0),
        ("calibrate", 0),
        ("draw",),
        ("stage", 1),
        ("publish",),
        ("wait for", 1),
        ("advance", 1, 1),
        ("draw",),
        ("stage", 2),
        ("publish",),
        ("wait for", 2),
        ("advance", 2, 2),
    ]


def test_the_last_step_publishes_nothing_as_nobody_would_generate_with_it():
    world = World(max_staleness=0)
    world.run()
    assert world.of("stage") == list(range(TOTAL))


@pytest.mark.parametrize("staleness", [1, 2, 5])
def test_step_s_begins_when_every_actor_holds_a_version_within_the_bound(staleness: int):
    world = World(max_staleness=staleness)
    world.run()
    waited = world.of("wait for")[1:]  # the first is the start's
    assert waited == [min(step + 1 - staleness, step) for step in range(TOTAL)]


def test_the_next_batch_is_drawn_ahead_while_the_learner_steps_and_none_after_the_last():
    world = World(max_staleness=2)
    world.source.begin(0, TOTAL)
    world.source.next(0)
    assert len(world.of("draw")) == 2
    for step in range(1, TOTAL):
        world.source.next(step)
    assert len(world.of("draw")) == TOTAL


@pytest.mark.parametrize(("every", "staleness"), [(2, 1), (4, 3), (4, 8)])
def test_rare_publications_are_awaited_at_the_newest_that_the_bound_can_ask_for(every: int, staleness: int):
    world = World(max_staleness=staleness, publish_every=every)
    world.run()
    assert world.of("stage") == list(range(0, TOTAL, every))
    for step, waited in enumerate(world.of("wait for")[1:]):
        assert waited % every == 0 and waited <= step  # it has been published
        assert waited >= min(step + 1 - staleness, step - step % every)  # and it is young enough


def test_fresh_reference_scores_go_back_under_the_keys_of_their_pairs():
    world = World(max_staleness=0)
    world.source.begin(0, TOTAL)
    batch = world.source.next(0)
    assert batch
    world.source.stepped(1, batch, [None, ReferenceScore(3, np.zeros(5, np.float32))])
    assert ("annotate", [8], [3]) in world.events


def test_parity_is_checked_after_the_publications_that_are_due():
    world = World(max_staleness=0)
    world.run()
    assert world.of("check") == [4]


HANDED_OVER = [("learner leaves",), ("engines may come",), ("publish",)]


def test_learner_and_engines_take_turns_on_gpus_that_they_share():
    world = World(max_staleness=0, colocate=True)
    world.source.prepare()
    assert world.run(last=2) == [
        ("engines leave",),
        ("score ahead",),
        ("stage", 0),
        *HANDED_OVER,
        ("wait for", 0),
        ("calibrate", 0),
        ("draw",),
        ("engines leave",),
        ("learner comes",),
        ("advance", 1, 1),  # a checkpoint would be written now, by a learner that is there
        ("stage", 1),
        *HANDED_OVER,
        ("wait for", 1),
        ("draw",),
        ("engines leave",),
        ("learner comes",),
        ("advance", 2, 2),
    ]


def test_on_shared_gpus_the_learner_scores_for_the_parity_check_before_it_leaves():
    world = World(max_staleness=0, colocate=True)
    world.run()
    ahead = [number for number, event in enumerate(world.events) if event == ("score ahead",)]
    assert len(ahead) == 2
    assert world.events[ahead[1] + 1] == ("stage", 4)
    assert ("check", 4) in world.events[ahead[1] :]


def test_a_resumed_run_publishes_its_own_step_first_and_calibrates_parity_on_it():
    world = World(max_staleness=0)
    world.run(first=5, last=6)
    assert world.of("stage") == [5, 6]
    assert world.of("calibrate") == [5]


def test_a_run_that_makes_no_usable_pair_ends_while_it_waits():
    world = World(max_staleness=0)
    world.source.begin(0, TOTAL)
    world.stats, world.waiting = BufferStats(identical=40), True
    world.__dict__["stats"] = lambda: BufferStats(identical=40)
    with pytest.raises(UserError, match="the last 40 segments all equal the originals"):
        world.source.next(0)


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_run_that_is_asked_to_end_gives_up_the_draw_that_waits_for_pairs(staleness: int):
    world = World(max_staleness=staleness)
    world.source.begin(0, TOTAL)
    world.slow = world.ending = True
    world.__dict__["stats"] = lambda: BufferStats(inserted=1)
    assert world.source.next(0) is None
    assert world.events[-1] == ("withdraw",)


def test_a_run_that_is_asked_to_end_takes_no_batch_beyond_the_staleness_bound():
    world = World(max_staleness=1)
    world.run(last=1)
    world.slow = world.ending = True
    assert world.source.next(1) is None  # though it was drawn ahead


def test_a_lockstep_run_that_is_asked_to_end_ends_actors_without_the_weights_before_they_may_go_on():
    world = World(max_staleness=0)
    world.source.begin(3, TOTAL)
    batch = world.source.next(3)
    assert batch
    world.slow = world.ending = True
    metrics = world.source.stepped(4, batch, [None, None])
    assert metrics["weights/version"] == 4  # as of a run that goes on
    assert world.events[-4:-1] == [("wait for", 4), ("dismiss",), ("advance", 4, 4)]


def test_timings_tell_who_waited():
    world = World(max_staleness=0)
    world.run(last=1)
    timings = world.source.timings()
    assert timings.actors_idle_s == (1.5, 2.0)
    assert timings.draw_wait_s >= 0 and timings.publish_s > 0
