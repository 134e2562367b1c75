"""A request that vLLM rejects is that request's failure alone; any other error is the engine's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.config import GenerationConfig
from actors.engine import RequestRejected, SegmentEngine
from actors.generator import GenerationActor
from actors.outbox import Outbox
from actors.plan import Plan
from actors.token_table import TokenTable
from buffer.messages import Finished, Outcome


def rejecting(error: Exception) -> SegmentEngine:
    """An engine whose vLLM answers every request with ``error``."""

    async def generate(*_: object, **__: object) -> AsyncIterator[Any]:
        raise error
        yield

    engine = SegmentEngine.__new__(SegmentEngine)
    engine._config, engine._ends = GenerationConfig(), [2]
    engine._engine = SimpleNamespace(generate=generate)
    engine._begin_awake()
    return engine


def validation_error() -> Exception:
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError("The decoder prompt is\ntoo long", parameter="prompt", value=9)


CALLS: tuple[Callable[[SegmentEngine], Any], ...] = (
    lambda engine: engine.complete(np.array([1, 5], np.int32), 4, 0, "r"),
    lambda engine: engine.score([1, 5], "r"),
    lambda engine: engine.score_last([1, 5], "r"),
)


@pytest.mark.contract
@pytest.mark.parametrize("call", CALLS)
def test_vllms_own_validation_error_and_a_value_error_reject_the_request(call: Callable[[SegmentEngine], Any]) -> None:
    from vllm.exceptions import VLLMValidationError

    assert not issubclass(VLLMValidationError, ValueError), "the reason why both are caught"
    for error in (validation_error(), ValueError("too long")):
        with pytest.raises(RequestRejected, match=r"too long|decoder prompt"):
            asyncio.run(call(rejecting(error)))


@pytest.mark.parametrize("call", CALLS)
def test_an_error_of_the_engine_is_handed_on_as_it_is(call: Callable[[SegmentEngine], Any]) -> None:
    from vllm.exceptions import GenerationError

    for error in (RuntimeError("the engine is dead"), GenerationError()):
        with pytest.raises(type(error)):
            asyncio.run(call(rejecting(error)))


@pytest.mark.parametrize("error", [validation_error, lambda: ValueError("too long")])
def test_a_rejected_request_is_a_failed_index_and_the_actor_goes_on(error: Callable[[], Exception]) -> None:
    put: list[Finished] = []
    table = TokenTable.from_rows([([1, 5], [6, 7, 8, 2])])
    actor = GenerationActor.__new__(GenerationActor)
    actor.name, actor._config, actor._table = "a", GenerationConfig(), table
    actor._plan = Plan(0, table.response_lengths, None, 1)
    actor._ends, actor._engine = frozenset({2}), rejecting(error())

    async def work() -> None:
        from actors.in_flight import InFlight

        async def insert(finished: list[Finished]) -> None:
            put.extend(finished)

        actor._outbox, actor._busy = Outbox(insert), InFlight()
        inserting = asyncio.ensure_future(actor._outbox.run())
        for index in range(3):
            await actor._work(index)
        actor._outbox.close()
        await inserting

    asyncio.run(work())
    assert [(f.index, f.outcome, f.pair) for f in put] == [(i, Outcome.FAILED, None) for i in range(3)]
