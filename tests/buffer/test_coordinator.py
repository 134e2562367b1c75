"""The front's leases without Ray: work whose outcome has no payload needs no shard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from buffer.config import BufferConfig
from buffer.coordinator import Front
from contracts.pair import Outcome


def run(story: Callable[[Front], Awaitable[None]], *, ordered: bool = True, ahead: int = 0, r: int = 8) -> None:
    async def begin() -> None:
        front = Front(BufferConfig(capacity=100), 0, r, r, ordered, ahead, 0, [None])
        await asyncio.wait_for(story(front), 10)

    asyncio.run(begin())


async def soon(*coroutines: Awaitable) -> list[asyncio.Future]:
    """Start calls and let them come to where they wait."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    await asyncio.sleep(0.01)
    return tasks


def identical(*indices: int) -> list[tuple[int, int, None, int]]:
    return [(index, int(Outcome.IDENTICAL), None, -1) for index in indices]


def test_waiting_actors_share_a_steps_work_equally():
    async def story(front: Front) -> None:
        assert await front.lease("a", 64) == list(range(8))
        tasks = await soon(*[front.lease(name, 64) for name in "abc"])
        assert not any(task.done() for task in tasks)
        await front.advance(1, 1)
        assert [len(await task) for task in tasks] == [3, 3, 2]

    run(story)


def test_a_share_that_is_not_asked_for_goes_to_the_others():
    async def story(front: Front) -> None:
        await front.lease("a", 64)
        tasks = await soon(front.lease("a", 1), front.lease("b", 64))
        await front.advance(1, 1)
        assert [await task for task in tasks] == [[8], [9, 10, 11, 12, 13, 14, 15]]

    run(story)


def test_leases_wait_until_weights_are_published():
    async def story(front: Front) -> None:
        assert await front.lease("a", 64) == list(range(16))
        (task,) = await soon(front.lease("a", 64))
        await front.advance(1, 0)
        await soon()
        assert not task.done()
        await front.advance(2, 2)
        assert await task == list(range(16, 32))

    run(story, ahead=1)


def test_a_lost_actors_work_goes_to_the_others_and_its_waiting_lease_gets_none():
    async def story(front: Front) -> None:
        assert await front.lease("a", 64) == list(range(8))
        lost, waiting = await soon(front.lease("a", 64), front.lease("b", 64))
        assert await front.release("a") == list(range(8))
        assert await lost is None
        assert await waiting == list(range(8))
        assert await front.lease("a", 64) is None  # a call that was on its way when the actor died

    run(story)


def test_an_index_that_two_actors_report_counts_once():
    async def story(front: Front) -> None:
        await front.lease("a", 64)
        await front.release("a")
        await front.lease("b", 64)
        await front.insert("a", identical(0, 1), 0)
        await front.insert("b", identical(0, 1, 2), 0)
        stats = await front.stats()
        assert (stats.identical, stats.duplicates, stats.mark) == (3, 2, 3)

    run(story)


def test_a_starved_learner_has_more_work_admitted():
    async def story(front: Front) -> None:
        await front.lease("a", 64)
        (draw, lease) = await soon(front.draw(), front.lease("a", 64))
        await front.insert("a", identical(*range(8)), 0)
        assert await lease == list(range(8, 16))
        assert not draw.done()
        draw.cancel()

    run(story)


@pytest.mark.parametrize("ordered", [True, False])
def test_closing_answers_leases_none_and_draws_with_an_error(ordered):
    async def story(front: Front) -> None:
        await front.lease("a", 64)
        lease, draw = await soon(front.lease("b", 1), front.draw())
        await front.close()
        assert await lease is None
        with pytest.raises(RuntimeError, match="the buffer is closed"):
            await draw
        assert await front.lease("a", 1) is None
        with pytest.raises(RuntimeError, match="the buffer is closed"):
            await front.draw()

    run(story, ordered=ordered)


def test_the_time_that_leases_and_draws_waited_is_added_up():
    async def story(front: Front) -> None:
        await front.lease("a", 64)
        waiting = await soon(front.lease("a", 64), front.lease("b", 64))
        await asyncio.sleep(0.05)
        await front.advance(1, 1)
        await asyncio.gather(*waiting)
        assert 0.1 <= (await front.stats()).blocked_lease_s < 1.0

    run(story)
