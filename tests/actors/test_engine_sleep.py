"""An engine that sleeps is woken by the next publication, part by part, and nothing is asked of it before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from actors.config import GenerationConfig
from actors.engine import SegmentEngine
from actors.weights.acceptance import Acceptance
from actors.weights.adapters import ADAPTERS


class Vllm:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.damaged: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> Any:
            shown = [str(value) for value in options.values()]
            self.calls.append(" ".join([name, *shown]))

        return call

    async def collective_rpc(self, method: str, kwargs: Any = None) -> list[Any]:
        if method == "damaged_weights":
            return [self.damaged]
        if method == "apply_adapters":
            self.calls.append(method)
        return [vars(Acceptance("Llama"))]


def engine() -> tuple[SegmentEngine, Vllm]:
    made, vllm = SegmentEngine.__new__(SegmentEngine), Vllm()
    vars(made).update(_config=GenerationConfig(), _ends=[2], _engine=vllm)
    made._begin_awake()
    return made, vllm


def test_an_update_of_one_that_is_awake_freezes_it_and_lets_it_go_on():
    async def update() -> list[str]:
        ours, vllm = engine()
        await ours.start_update()
        await ours.finish_update(3, {})
        return vllm.calls

    assert asyncio.run(update()) == [
        "pause_generation keep True",
        "start_weight_update",
        "finish_weight_update 3",
        "resume_generation",
    ]


def test_one_that_sleeps_gets_room_for_weights_first_and_for_its_cache_when_they_are_loaded():
    async def update() -> list[str]:
        ours, vllm = engine()
        await ours.sleep()
        await ours.sleep()  # it does already
        await ours.start_update()
        await ours.start_update()  # the sender gave up in between, and tries again
        await ours.finish_update(3, {})
        return vllm.calls

    assert asyncio.run(update()) == [
        "sleep 2",
        "wake_up ['weights']",
        "start_weight_update",
        "finish_weight_update 3",
        "wake_up ['kv_cache']",
        "resume_generation",
    ]


def test_one_that_gets_adapters_alone_keeps_its_weights_and_applies_them_when_vllm_has_ended_the_update():
    async def update() -> list[str]:
        ours, vllm = engine()
        ours._keeps_base = True
        await ours.sleep()
        await ours.start_update()
        await ours.finish_update(3, {})
        assert ours._adapters.adapter_id == ADAPTERS
        return vllm.calls

    assert asyncio.run(update()) == [
        "sleep 1",
        "wake_up ['weights']",
        "start_weight_update",
        "finish_weight_update 3",
        "apply_adapters",
        "wake_up ['kv_cache']",
        "resume_generation",
    ]


def test_work_waits_until_sound_weights_are_there():
    async def wait() -> list[bool]:
        ours, vllm = engine()
        await ours.awake()
        await ours.sleep()
        waiting = asyncio.ensure_future(ours.awake())
        seen = []
        for vllm.damaged in (["w"], []):
            await ours.start_update()
            with contextlib.suppress(RuntimeError):
                await ours.finish_update(1, {"w": 1})
            await asyncio.sleep(0)
            seen.append(waiting.done())
        return seen

    assert asyncio.run(wait()) == [False, True]
