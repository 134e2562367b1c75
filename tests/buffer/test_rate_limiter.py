"""The limiter's two inequalities, and that no interleaving of actors and learner breaks them or stops."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buffer.leases import LeaseLedger
from buffer.rate_limiter import RateLimiter, warmup_offset


@given(
    r=st.integers(1, 9),
    ahead=st.integers(0, 5),
    offset=st.integers(0, 9),
    published=st.integers(0, 50),
    deficit=st.integers(0, 9),
    index=st.integers(0, 600),
)
def test_work_for_step_d_is_admitted_until_ahead_steps_after_the_published_weights(
    r, ahead, offset, published, deficit, index
):
    limiter = RateLimiter(r, 1, ahead, 0, offset, steps=published + 3, published=published, deficit=deficit)
    step = max(0, (index - offset - deficit) // r)
    assert (index < limiter.admitted()) == (step <= published + ahead)


def test_lockstep_admits_one_step_and_draws_when_all_of_it_is_accounted_for():
    limiter = RateLimiter(inserts_per_step=4, needed=4, ahead=0, behind=0)
    assert limiter.admitted() == 4
    limiter.accounted = 3
    assert not limiter.may_draw(size=99)
    limiter.accounted = 4
    assert limiter.may_draw(size=4)
    assert not limiter.may_draw(size=3)
    limiter.draws = 1
    assert not limiter.may_draw(size=99)
    assert limiter.admitted() == 4
    limiter.steps = limiter.published = 1
    assert limiter.admitted() == 8


def test_publishing_every_five_steps_admits_exactly_the_current_iteration_until_the_next_publication():
    limiter, ledger = RateLimiter(inserts_per_step=3, needed=3, ahead=4, behind=0), LeaseLedger()
    for iteration in range(4):
        first = 15 * iteration
        assert ledger.lease("a", 10**6, limiter.admitted()) == list(range(first, first + 15))
        for step in range(5 * iteration + 1, 5 * iteration + 5):
            limiter.steps = step
            assert ledger.lease("a", 10**6, limiter.admitted()) == []
        limiter.steps = limiter.published = 5 * iteration + 5


def test_learners_that_lack_pairs_get_more_work_and_wait_for_all_of_it():
    limiter = RateLimiter(inserts_per_step=4, needed=4, ahead=0, behind=0, accounted=4)
    limiter.credit(size=3)
    assert limiter.admitted() == 8
    limiter.credit(size=3)
    assert limiter.admitted() == 8  # not again before that is accounted for
    limiter.accounted = 7
    assert not limiter.may_draw(size=6)
    limiter.accounted = 8
    assert limiter.may_draw(size=6)


def test_a_learner_that_still_holds_a_batch_is_given_no_credit_on_the_old_weights():
    limiter = RateLimiter(inserts_per_step=4, needed=4, ahead=0, behind=0, accounted=4, draws=1)
    limiter.credit(size=0)
    assert limiter.admitted() == 4
    limiter.steps = 1
    limiter.credit(size=0)
    assert limiter.admitted() == 8


@given(needed=st.integers(1, 50), r=st.integers(1, 9))
def test_the_warm_up_is_the_fewest_whole_steps_that_can_fill_the_first_draw(needed, r):
    assert warmup_offset(needed, r) == next(n * r for n in range(99) if n * r + r >= needed)


@dataclass
class World:
    """Actors, a learner and a buffer of which only the size is known, in an order drawn by ``choose``."""

    limiter: RateLimiter
    batch: int
    capacity: int
    every: int
    """Optimizer steps between publications."""
    prefetch: bool
    leave_when_drawn: bool
    kept_of_ten: int
    choose: random.Random
    ledger: LeaseLedger = field(default_factory=LeaseLedger)
    size: int = 0
    in_flight: list[int] = field(default_factory=list)
    batches: int = 0
    """In the learner's hands."""
    log: list[tuple[int, int]] = field(default_factory=list)

    def kept(self, index: int) -> bool:
        return index % 10 < self.kept_of_ten

    def enabled(self) -> list:
        limiter, room = self.limiter, 1 + self.prefetch
        events = []
        if self.ledger.free(limiter.admitted()):
            events += [self.lease] * 3
        if self.in_flight:
            events += [self.finish] * 3
        if self.batches < room and limiter.may_draw(self.size):
            events.append(self.draw)
        if self.batches:
            events.append(self.step)
        return events

    def lease(self) -> None:
        limiter = self.limiter
        for index in self.ledger.lease("a", self.choose.randrange(1, 4), limiter.admitted()):
            step = (index - limiter.warmup_offset - limiter.deficit) // limiter.inserts_per_step
            assert step <= limiter.published + limiter.ahead
            self.in_flight.append(index)

    def finish(self) -> None:
        index = self.in_flight.pop(self.choose.randrange(len(self.in_flight)))
        assert self.ledger.account("a", index)
        self.limiter.accounted = self.ledger.accounted
        self.size = min(self.capacity, self.size + self.kept(index))
        self.limiter.credit(self.size)

    def draw(self) -> None:
        limiter = self.limiter
        due = (limiter.draws + 1 - limiter.behind) * limiter.inserts_per_step
        assert limiter.accounted - limiter.warmup_offset - limiter.deficit >= due
        assert self.size >= self.batch
        self.log.append((limiter.accounted, self.size))
        limiter.draws += 1
        self.batches += 1
        if self.leave_when_drawn:
            self.size -= self.batch
        limiter.credit(self.size)

    def step(self) -> None:
        limiter = self.limiter
        self.batches -= 1
        limiter.steps += 1
        if limiter.steps % self.every == 0:
            limiter.published = limiter.steps
        limiter.credit(self.size)

    def run(self, steps: int) -> None:
        while self.limiter.steps < steps:
            events = self.enabled()
            assert events, f"nobody can go on: {self.limiter}"
            self.choose.choice(events)()


@given(
    r=st.integers(1, 6),
    batch=st.integers(1, 6),
    min_size=st.integers(0, 12),
    ahead=st.integers(0, 3),
    behind=st.integers(0, 3),
    every=st.integers(1, 7),
    prefetch=st.booleans(),
    leave=st.booleans(),
    kept=st.integers(1, 10),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300)
def test_any_interleaving_of_actors_and_learner_goes_on_within_the_slack(
    r, batch, min_size, ahead, behind, every, prefetch, leave, kept, seed
):
    needed = max(batch, min_size)
    limiter = RateLimiter(r, needed, ahead, behind, warmup_offset=warmup_offset(needed, r))
    every = min(every, ahead + behind + 1)
    world = World(limiter, batch, needed + 5, every, prefetch, leave, kept, random.Random(seed))
    world.run(12)
    assert limiter.draws - limiter.steps <= 1 + prefetch


@given(r=st.integers(1, 6), batch=st.integers(1, 6), leave=st.booleans(), kept=st.integers(1, 10), seed=st.integers(0))
@settings(max_examples=100)
def test_in_lockstep_every_draw_sees_the_same_whatever_the_interleaving(r, batch, leave, kept, seed):
    def log(seed: int) -> list[tuple[int, int]]:
        limiter = RateLimiter(r, batch, 0, 0, warmup_offset=warmup_offset(batch, r))
        world = World(limiter, batch, 10**6, 1, False, leave, kept, random.Random(seed))
        world.run(8)
        return world.log

    assert log(seed) == log(seed + 1)


def test_publications_further_apart_than_the_slack_would_stop_the_run():
    limiter = RateLimiter(inserts_per_step=2, needed=2, ahead=1, behind=1)
    world = World(limiter, 2, 9, 4, False, False, 10, random.Random(0))
    with pytest.raises(AssertionError, match="nobody can go on"):
        world.run(12)
    limiter = replace(limiter, steps=0, published=0, draws=0, accounted=0)
    World(limiter, 2, 9, 3, False, False, 10, random.Random(0)).run(12)


@given(r=st.integers(1, 6), new_r=st.integers(1, 6), ahead=st.integers(0, 3), kept=st.integers(1, 10))
def test_a_resumed_run_goes_on_with_new_settings_and_draws_again_what_was_not_trained_on(r, new_r, ahead, kept):
    saved = RateLimiter(r, 4, 2, 2, warmup_offset=0)
    world = World(saved, 4, 9, 1, True, False, 10, random.Random(1))
    world.run(5)
    limiter = RateLimiter(new_r, 4, ahead, 0, warmup_offset=7)
    limiter.resume(saved.state())
    assert limiter.draws == limiter.steps == 5
    base = saved.warmup_offset + 6 * r + saved.deficit  # where the next step's work would have ended without slack
    assert limiter.admitted() == base - r + (1 + ahead) * new_r
    again = World(
        limiter, 4, 9, 1, False, False, kept, random.Random(2), LeaseLedger.restored(world.ledger.state()), world.size
    )
    again.run(12)


def test_resuming_again_and_again_never_stops_the_run():
    limiter = RateLimiter(inserts_per_step=2, needed=2, ahead=1, behind=1)
    ledger, size, seed = LeaseLedger(), 0, 0
    for steps in range(2, 30, 2):
        world = World(limiter, 2, 9, 1, True, False, 10, random.Random(seed), ledger=ledger, size=size)
        while limiter.steps < steps or limiter.draws == limiter.steps:  # stopped with a prefetched batch in hand
            world.choose.choice(world.enabled())()
        fresh = RateLimiter(inserts_per_step=2, needed=2, ahead=1, behind=1)
        fresh.resume(limiter.state())
        limiter, ledger, size, seed = fresh, LeaseLedger.restored(ledger.state()), world.size, seed + 1
