"""The coordinator's leases without Ray: work whose outcome has no payload needs no shard."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from buffer.config import BufferConfig
from buffer.coordinator import Coordinator
from buffer.messages import Drawing, InsertRequest, InsertRow, Outcome, SlotPayloads


def run(
    story: Callable[[Coordinator], Awaitable[None]],
    *,
    ordered: bool = True,
    ahead: int = 0,
    r: int = 8,
    shards: list[Any] | None = None,
) -> None:
    async def begin() -> None:
        coordinator = Coordinator(
            BufferConfig(capacity=100),
            seed=0,
            batch_size=r,
            inserts_per_step=r,
            ordered=ordered,
            ahead=ahead,
            behind=0,
            shards=shards or [None],
        )
        await asyncio.wait_for(story(coordinator), 10)

    asyncio.run(begin())


async def soon(*coroutines: Awaitable[Any]) -> list[asyncio.Future[Any]]:
    """Start calls and let them come to where they wait."""
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(c) for c in coroutines]
    await asyncio.sleep(0.01)
    return tasks


def identical(actor: str, *indices: int) -> InsertRequest:
    return InsertRequest(actor, [InsertRow(index, Outcome.IDENTICAL, None, -1) for index in indices], 0)


class HeldShard:
    """Stands for a shard's handle; keeps what it is sent."""

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}
        self.insert = self.get = self

    def remote(self, sent: SlotPayloads | list[int]) -> SlotPayloads | None:
        if isinstance(sent, SlotPayloads):
            self.held |= sent.payloads
            return None
        return SlotPayloads({slot: self.held[slot] for slot in sent})


def test_payloads_lie_in_equal_shares_and_are_found_again():
    shards = [HeldShard() for _ in range(4)]

    async def story(coordinator: Coordinator) -> None:
        await coordinator.lease("a", 100)
        rows = [InsertRow(index, Outcome.INSERTED, bytes([index]), 0) for index in range(100)]
        await coordinator.insert(InsertRequest("a", rows, 0))
        answer = await coordinator.draw()
        assert answer
        assert [len(shard.held) for shard in shards] == [25, 25, 25, 25]
        found = {slot: payload for share in answer.payloads for slot, payload in share.payloads.items()}
        assert sorted(found[slot] for slot in answer.drawn.slots.tolist()) == [bytes([index]) for index in range(100)]

    run(story, r=100, shards=shards)


def test_waiting_actors_share_a_steps_work_equally():
    async def story(coordinator: Coordinator) -> None:
        assert (await coordinator.lease("a", 64)).indices == list(range(8))
        tasks = await soon(*[coordinator.lease(name, 64) for name in "abc"])
        assert not any(task.done() for task in tasks)
        await coordinator.advance(1, 1)
        assert [len((await task).indices) for task in tasks] == [3, 3, 2]

    run(story)


def test_a_share_that_is_not_asked_for_goes_to_the_others():
    async def story(coordinator: Coordinator) -> None:
        await coordinator.lease("a", 64)
        tasks = await soon(coordinator.lease("a", 1), coordinator.lease("b", 64))
        await coordinator.advance(1, 1)
        assert [(await task).indices for task in tasks] == [[8], [9, 10, 11, 12, 13, 14, 15]]

    run(story)


def test_leases_wait_until_weights_are_published():
    async def story(coordinator: Coordinator) -> None:
        assert (await coordinator.lease("a", 64)).indices == list(range(16))
        (task,) = await soon(coordinator.lease("a", 64))
        await coordinator.advance(1, 0)
        await soon()
        assert not task.done()
        await coordinator.advance(2, 2)
        assert (await task).indices == list(range(16, 32))

    run(story, ahead=1)


def test_a_lost_actors_work_goes_to_the_others_and_its_waiting_lease_gets_none():
    async def story(coordinator: Coordinator) -> None:
        assert (await coordinator.lease("a", 64)).indices == list(range(8))
        lost, waiting = await soon(coordinator.lease("a", 64), coordinator.lease("b", 64))
        assert await coordinator.release("a") == list(range(8))
        assert (await lost).indices is None
        assert (await waiting).indices == list(range(8))
        assert (await coordinator.lease("a", 64)).indices is None  # a call that was on its way when the actor died

    run(story)


def test_an_index_that_two_actors_report_counts_once():
    async def story(coordinator: Coordinator) -> None:
        await coordinator.lease("a", 64)
        await coordinator.release("a")
        await coordinator.lease("b", 64)
        await coordinator.insert(identical("a", 0, 1))
        await coordinator.insert(identical("b", 0, 1, 2))
        stats = await coordinator.stats()
        assert (stats.identical, stats.duplicates, stats.mark) == (3, 2, 3)

    run(story)


def test_a_learner_that_lacks_pairs_has_more_work_admitted():
    async def story(coordinator: Coordinator) -> None:
        await coordinator.lease("a", 64)
        (draw, lease) = await soon(coordinator.draw(), coordinator.lease("a", 64))
        await coordinator.insert(identical("a", *range(8)))
        assert (await lease).indices == list(range(8, 16))
        assert not draw.done()
        draw.cancel()

    run(story)


def test_a_draw_that_is_withdrawn_changes_nothing():
    shard = HeldShard()
    row = [InsertRow(index, Outcome.INSERTED, b"pair", 0) for index in range(4)]

    async def story(coordinator: Coordinator) -> None:
        before = pickle.dumps((coordinator._index.state(), coordinator._limiter.state()))
        (waiting,) = await soon(coordinator.draw())
        await coordinator.withdraw_draws()
        assert await waiting is None
        assert pickle.dumps((coordinator._index.state(), coordinator._limiter.state())) == before
        await coordinator.advance(0, published=0)
        await coordinator.lease("a", 4)
        await coordinator.insert(InsertRequest("a", row, 0))
        assert coordinator._index.draws == 0  # nobody draws
        (drawing,) = await soon(coordinator.draw())
        await coordinator.withdraw_draws()  # it has its batch
        assert await drawing is not None
        assert coordinator._index.draws == 1

    run(story, r=4, shards=[shard])


@pytest.mark.parametrize("ordered", [True, False])
def test_closing_answers_leases_none_and_draws_with_an_error(ordered):
    async def story(coordinator: Coordinator) -> None:
        await coordinator.lease("a", 64)
        lease, draw = await soon(coordinator.lease("b", 1), coordinator.draw())
        await coordinator.close()
        assert (await lease).indices is None
        with pytest.raises(RuntimeError, match="the buffer is closed"):
            await draw
        assert (await coordinator.lease("a", 1)).indices is None
        with pytest.raises(RuntimeError, match="the buffer is closed"):
            await coordinator.draw()

    run(story, ordered=ordered)


def test_the_time_that_leases_and_draws_waited_is_added_up():
    async def story(coordinator: Coordinator) -> None:
        await coordinator.lease("a", 64)
        waiting = await soon(coordinator.lease("a", 64), coordinator.lease("b", 64))
        await asyncio.sleep(0.05)
        await coordinator.advance(1, 1)
        await asyncio.gather(*waiting)
        assert 0.1 <= (await coordinator.stats()).blocked_lease_s < 1.0

    run(story)


def test_the_share_of_identical_segments_is_that_of_the_newest_ones():
    drawing = Drawing().next(accounted=8, identical=2)
    assert drawing.identical_fraction == 2 / 8
    assert drawing.next(12, 5).identical_fraction == 3 / 4
    assert drawing.next(12, 5).next(12, 5).identical_fraction == 3 / 4  # nothing new: the last figure stands
    assert Drawing().next(0, 0).identical_fraction is None


class SavedShard(HeldShard):
    def __init__(self) -> None:
        super().__init__()
        self.save = self.load = self

    def remote(self, *sent: Any) -> Any:
        return super().remote(*sent) if len(sent) == 1 and not isinstance(sent[0], Path) else asyncio.sleep(0)


def test_a_restored_buffer_goes_on_with_the_same_figures():
    def outcomes(coordinator: Coordinator, first: int, kind: Outcome) -> Awaitable[None]:
        payload = b"pair" if kind is Outcome.INSERTED else None
        return coordinator.insert(InsertRequest("a", [InsertRow(first + n, kind, payload, 0) for n in range(4)], 0))

    async def go_on(coordinator: Coordinator) -> float:
        await coordinator.advance(1, published=1)
        await coordinator.lease("a", 4)
        await outcomes(coordinator, 4, Outcome.IDENTICAL)
        drawn = await coordinator.draw()
        assert drawn
        return drawn.stats.identical_fraction

    async def story(coordinator: Coordinator) -> None:
        await coordinator.advance(0, published=0)
        await coordinator.lease("a", 4)
        await outcomes(coordinator, 0, Outcome.INSERTED)
        drawn = await coordinator.draw()
        assert drawn and drawn.stats.identical_fraction == 0
        state = await coordinator.snapshot(Path())
        assert await go_on(coordinator) == 1

        async def resumed(other: Coordinator) -> None:
            await other.restore(state, Path())
            assert (await other.stats()).identical_fraction == 0
            assert await go_on(other) == 1

        again.append(resumed)

    again: list[Callable[[Coordinator], Awaitable[None]]] = []
    shards = [SavedShard()]
    run(story, r=4, shards=shards)
    run(again[0], r=4, shards=shards)
