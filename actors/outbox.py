"""Finished work on its way to the buffer: inserted several pairs at a time, at once when somebody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

PAUSE_S = 0.025
"""How long a finished pair waits for others to be inserted with it, while others are being generated."""


class Outbox(Generic[Item]):
    """Of one event loop."""

    def __init__(self, insert: Callable[[list[Item]], Awaitable[None]]) -> None:
        self._insert = insert
        self._items: asyncio.Queue[Item | None] = asyncio.Queue()
        """None ends it."""
        self._hurry = asyncio.Event()

    def put(self, item: Item) -> None:
        self._items.put_nowait(item)

    def close(self) -> None:
        """Nothing more will be put in; ``run`` returns when all is inserted."""
        self._items.put_nowait(None)

    def hurry(self) -> None:
        """Insert what is there without waiting for more."""
        self._hurry.set()

    async def emptied(self) -> None:
        """Returns when all that was put in is inserted."""
        await self._items.join()

    async def run(self) -> None:
        """Insert until closed.

        Raises:
            Exception: what ``insert`` raised.
        """
        more = True
        while more:
            batch = [await self._items.get()]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), PAUSE_S)
            self._hurry.clear()
            while not self._items.empty():
                batch.append(self._items.get_nowait())
            more = None not in batch
            if finished := [item for item in batch if item is not None]:
                await self._insert(finished)
            for _ in batch:
                self._items.task_done()
