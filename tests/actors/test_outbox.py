"""Everything that is put in is inserted once, in order, in few calls."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest

from actors import outbox
from actors.outbox import Outbox


def test_what_comes_together_is_inserted_together_and_in_order():
    async def scenario() -> list[list[int]]:
        calls: list[list[int]] = []

        async def insert(items: list[int]) -> None:
            calls.append(items)

        box = Outbox(insert)
        for item in range(5):
            box.put(item)
        box.close()
        await box.run()
        return calls

    assert asyncio.run(scenario()) == [[0, 1, 2, 3, 4]]


def test_who_waits_does_not_wait_for_more_to_come():
    async def scenario() -> None:
        inserted: list[int] = []

        async def insert(items: list[int]) -> None:
            inserted.extend(items)

        box = Outbox(insert)
        running = asyncio.create_task(box.run())
        box.put(7)
        box.hurry()
        await asyncio.wait_for(box.emptied(), timeout=60.0)
        assert inserted == [7]
        box.close()
        box.hurry()
        await running

    with mock.patch.object(outbox, "PAUSE_S", 3600.0):
        asyncio.run(scenario())


def test_what_is_being_inserted_still_counts_as_in_the_box():
    async def scenario() -> None:
        answered = asyncio.Event()

        async def insert(items: list[int]) -> None:
            await answered.wait()

        box = Outbox(insert)
        running = asyncio.create_task(box.run())
        box.put(7)
        emptied = asyncio.create_task(box.emptied())
        done, _ = await asyncio.wait([emptied], timeout=0.2)
        assert not done
        answered.set()
        box.close()
        await asyncio.gather(emptied, running)

    asyncio.run(scenario())


def test_an_insert_that_fails_ends_it():
    async def scenario() -> None:
        async def insert(items: list[int]) -> None:
            raise KeyError(items[0])

        box = Outbox(insert)
        box.put(3)
        await box.run()

    with pytest.raises(KeyError, match="3"):
        asyncio.run(scenario())
