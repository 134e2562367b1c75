"""The buffer as Ray actors: what goes in comes out, in one order, whatever the number of shards."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import ray
from scipy.stats import chisquare

from buffer.client import Draw, ReplayBuffer
from buffer.config import BufferConfig
from buffer.messages import DrawAnswer, Finished, Outcome
from contracts.errors import UserError
from contracts.pair import PreferencePair, ReferenceScore, as_token_ids

LEVEL = 1e-3
Start = Callable[..., ReplayBuffer]


@pytest.fixture
def start(ray_local: None) -> Iterator[Start]:
    """Starts buffers and ends them with the test."""
    started: list[ReplayBuffer] = []

    def start_one(
        capacity: int = 16,
        *,
        batch: int = 4,
        r: int = 4,
        ordered: bool = True,
        ahead: int = 0,
        behind: int = 0,
        **config: Any,
    ) -> ReplayBuffer:
        started.append(
            ReplayBuffer.start(
                BufferConfig(capacity=capacity, **config),
                seed=11,
                batch_size=batch,
                inserts_per_step=r,
                ordered=ordered,
                ahead=ahead,
                behind=behind,
            )
        )
        return started[-1]

    yield start_one
    for buffer in started:
        buffer.shutdown()


def pair_of(index: int, version: int = 0) -> PreferencePair:
    """A pair whose every field tells its index."""
    rng = np.random.default_rng(index)
    prompt, chosen, replacement = (as_token_ids(rng.integers(0, 99, n)) for n in rng.integers(3, 30, 3))
    return PreferencePair(
        prompt,
        chosen,
        1,
        len(chosen) - 1,
        replacement,
        bool(index % 2),
        index,
        index * 2,
        f"actor-{index}",
        np.full(len(replacement), version, np.int32),
        -0.1 * index,
        bool(index % 3),
    )


def same(a: PreferencePair, b: PreferencePair) -> bool:
    names = {field.name for field in fields(PreferencePair)} - {"reference"}
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


async def insert(buffer: ReplayBuffer, indices: list[int], actor: str = "a") -> None:
    await buffer.insert(actor, [Finished(i, Outcome.INSERTED, pair_of(i)) for i in indices])


def fill(buffer: ReplayBuffer, count: int) -> None:
    """Lease and insert the next ``count`` indices."""

    async def work() -> None:
        left = count
        while left:
            indices = await buffer.lease("a", left)
            assert indices is not None
            await insert(buffer, indices)
            left -= len(indices)

    asyncio.run(asyncio.wait_for(work(), 60))


def train(buffer: ReplayBuffer, first: int, steps: int, r: int = 4) -> list[Draw]:
    """``steps`` lockstep steps from step ``first`` on."""
    draws = []
    for step in range(first, first + steps):
        fill(buffer, r)
        draws.append(buffer.draw())
        buffer.advance(step + 1)
    return draws


def seen(draws: list[Draw]) -> list[tuple]:
    return [
        ([p.index for p in d.pairs], d.keys.tolist(), d.draw_counts.tolist(), d.ages.tolist(), d.staleness.tolist())
        for d in draws
    ]


@pytest.mark.slow
def test_every_pair_that_is_drawn_is_the_one_that_was_inserted(start):
    buffer = start(shards=2)
    for draw in train(buffer, 0, 6):
        assert len(draw.pairs) == 4
        assert all(same(pair, pair_of(pair.index)) for pair in draw.pairs)
        assert draw.keys.tolist() == [pair.index for pair in draw.pairs]
    stats = buffer.stats()
    assert (stats.size, stats.inserted, stats.evicted, stats.draws, stats.mark) == (16, 24, 8, 6, 24)


@pytest.mark.slow
def test_draws_are_identical_for_any_number_of_shards_and_any_order_of_arrival(start):
    def run(shards: int, seed: int) -> list[tuple]:
        buffer, choose = start(shards=shards, r=6), random.Random(seed)
        steps = []

        async def shuffled() -> None:
            indices = await buffer.lease("a", 6)
            assert indices is not None
            choose.shuffle(indices)
            first = choose.randrange(1, 6)
            await insert(buffer, indices[:first])
            await insert(buffer, indices[first:])

        for step in range(8):
            asyncio.run(shuffled())
            steps.append(buffer.draw())
            buffer.advance(step + 1)
        return seen(steps)

    assert run(1, seed=0) == run(4, seed=1)


@pytest.mark.slow
def test_draws_spread_over_shards_as_over_one_buffer(start):
    buffer = start(32, shards=4, r=32, batch=1, sampler="uniform", behind=10**6)
    fill(buffer, 32)
    answers: list[DrawAnswer] = ray.get([buffer.draw_ref() for _ in range(1600)])
    counts = np.bincount([int(answer.drawn.slots[0]) for answer in answers], minlength=32)
    assert chisquare(counts).pvalue > LEVEL
    assert chisquare(counts.reshape(4, 8).sum(1)).pvalue > LEVEL  # a shard's slots are a run of 8


@pytest.mark.slow
def test_reference_scores_stay_with_their_pairs_and_scores_of_evicted_pairs_are_dropped(start):
    buffer = start(8, shards=2, batch=8, r=8, behind=10**6)  # each draw is the whole buffer

    def score(draw: Draw, version: int) -> None:
        scores = [ReferenceScore(version, np.full(5, key, np.float32)) for key in draw.keys]
        buffer.annotate(draw.keys, scores)

    (evicted,) = train(buffer, 0, 1, r=8)
    fill(buffer, 8)
    score(evicted, 3)
    kept = buffer.draw()
    assert all(pair.reference is None for pair in kept.pairs)
    score(kept, 4)
    buffer.advance(2)
    fill(buffer, 4)  # evicts half of it
    pairs = {pair.index: pair for pair in buffer.draw().pairs}
    scored = {i: (p.reference.version, float(p.reference.logps[0])) for i, p in pairs.items() if p.reference}
    assert scored == {i: (4, float(i)) for i in range(12, 16)}
    assert all(same(pair, pair_of(i)) for i, pair in pairs.items())


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 2), (1, 4), (4, 2), (8, 1), (2, 16)])
def test_a_restored_buffer_goes_on_exactly_on_any_number_of_shards(start, tmp_path, before, after):
    first = start(shards=before)
    train(first, 0, 5)
    asyncio.run(_half_a_step(first))
    first.snapshot(tmp_path)()
    expected = seen(_finish(first))
    second = start(shards=after)
    second.restore(tmp_path)
    assert second.stats().mark == 20
    assert seen(_finish(second)) == expected


async def _half_a_step(buffer: ReplayBuffer) -> None:
    """Report half of step 5's indices, but not the first: in lockstep they are held back."""
    indices = await buffer.lease("lost", 4)
    assert indices is not None
    await insert(buffer, indices[2:], "lost")


def _finish(buffer: ReplayBuffer) -> list[Draw]:
    """Complete step 5 and train on; the indices that were leased before belong to nobody."""
    buffer.release("lost")
    fill(buffer, 2)
    draw = buffer.draw()
    buffer.advance(6)
    return [draw, *train(buffer, 6, 4)]


@pytest.mark.slow
def test_a_snapshot_amid_inserts_holds_every_pair_that_it_counts(start, tmp_path):
    buffer = start(400, shards=2, r=400, batch=10, ordered=False, sampler="uniform", max_draws=1)

    async def work() -> None:
        indices = await buffer.lease("a", 400)
        assert indices is not None

        async def one(index: int) -> None:
            await insert(buffer, [index])

        tasks = [asyncio.ensure_future(one(i)) for i in indices]
        await asyncio.sleep(0.05)
        written = await asyncio.to_thread(buffer.snapshot, tmp_path)
        await asyncio.gather(*tasks)
        await asyncio.to_thread(written)

    asyncio.run(work())
    restored = start(400, shards=4, r=1, batch=10, ordered=False, sampler="uniform", max_draws=1, behind=10**6)
    restored.restore(tmp_path)
    stats = restored.stats()
    assert stats.size == stats.inserted
    draws = [restored.draw() for _ in range(stats.size // 10)]
    drawn = [pair for draw in draws for pair in draw.pairs]
    assert len({pair.index for pair in drawn}) == 10 * (stats.size // 10)
    assert all(same(pair, pair_of(pair.index)) for pair in drawn)


@pytest.mark.slow
def test_snapshots_that_do_not_fit_are_rejected_in_one_line(start, tmp_path):
    buffer = start(shards=2)
    train(buffer, 0, 1)
    buffer.snapshot(tmp_path / "whole")()
    with pytest.raises(UserError, match=r"buffer.capacity 8: the snapshot in .* was taken at 16"):
        start(8).restore(tmp_path / "whole")
    with pytest.raises(UserError, match="no snapshot of a replay buffer"):
        buffer.restore(tmp_path / "none")
    (tmp_path / "whole" / "shard-0001.bin").unlink()
    with pytest.raises(UserError, match=r"shard-0001.bin is missing: the snapshot is not whole"):
        buffer.restore(tmp_path / "whole")


@pytest.mark.slow
def test_actors_and_learner_wait_for_each_other_and_are_woken(start):
    buffer = start()

    async def story() -> None:
        indices = await buffer.lease("a", 9)
        assert indices == [0, 1, 2, 3]
        lease = asyncio.ensure_future(buffer.lease("a", 9))
        draw = asyncio.ensure_future(asyncio.to_thread(buffer.draw))
        await insert(buffer, indices[:3])
        await asyncio.sleep(0.3)
        assert not draw.done()
        await insert(buffer, indices[3:])
        assert sorted(pair.index for pair in (await draw).pairs) == indices
        await asyncio.sleep(0.1)
        assert not lease.done()
        await asyncio.to_thread(buffer.advance, 1)
        assert await lease == [4, 5, 6, 7]
        stats = await asyncio.to_thread(buffer.stats)
        assert stats.blocked_draw_s > 0.25
        assert stats.blocked_lease_s > 0.35
        waiting = asyncio.ensure_future(buffer.lease("a", 9))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(buffer.close)
        assert await waiting is None

    asyncio.run(asyncio.wait_for(story(), 60))
    with pytest.raises(RuntimeError, match="the buffer is closed"):
        buffer.draw()


@pytest.mark.slow
def test_many_actors_drop_and_repeat_nothing_though_one_is_lost(start):
    steps, r = 20, 8
    buffer = start(256, shards=2, r=r, batch=r, ordered=False, ahead=2, behind=2, sampler="uniform", max_draws=1)
    drawn: list[PreferencePair] = []

    def outcome(index: int) -> Outcome:
        return Outcome.IDENTICAL if index % 7 == 3 else Outcome.INSERTED

    def finished(index: int) -> Finished:
        return Finished(index, outcome(index), pair_of(index) if outcome(index) is Outcome.INSERTED else None)

    async def actor(name: str) -> None:
        choose = random.Random(name)
        while (indices := await buffer.lease(name, choose.randrange(1, 6))) is not None:
            await asyncio.sleep(choose.uniform(0, 0.01))
            if name == "lost" and indices[0] > 40:
                await asyncio.to_thread(buffer.release, name)
                return
            await buffer.insert(name, [finished(i) for i in indices])

    def learn() -> None:
        for step in range(steps):
            drawn.extend(buffer.draw().pairs)
            buffer.advance(step + 1)
        buffer.close()

    async def run() -> None:
        await asyncio.gather(*[actor(name) for name in ("a", "b", "c", "lost")], asyncio.to_thread(learn))

    asyncio.run(asyncio.wait_for(run(), 120))
    indices = [pair.index for pair in drawn]
    assert len(indices) == len(set(indices)) == steps * r
    assert all(outcome(i) is Outcome.INSERTED for i in indices)
    assert all(same(pair, pair_of(pair.index)) for pair in drawn)
    stats = buffer.stats()
    assert stats.duplicates == 0
    assert stats.inserted - stats.size == len(indices)
    assert stats.inserted + stats.identical >= stats.mark
    assert stats.identical >= sum(outcome(i) is Outcome.IDENTICAL for i in range(stats.mark))
    assert stats.leased == 0
