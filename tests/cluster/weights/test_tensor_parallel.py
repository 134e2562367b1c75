"""An engine over two processes, in a placement group as a run starts it, takes published weights and leaves nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.config import GenerationConfig
from actors.generator import GenerationActor
from actors.messages import Backend
from support.engines import SEQUENCES, largest_difference, start_actor, start_sender

TOLERANCE_NATS = 1e-4
PACKED = GenerationConfig(tensor_parallel=2, temperature=0.0, max_concurrent_requests=8)
UNPACKED = PACKED.model_copy(update={"packed_weights": False})
LEAVES_WITHIN_S = 60.0


def both(sender: Any, actor: Any) -> float:
    return largest_difference(*ray.get([actor.score.remote(SEQUENCES), sender.score.remote(SEQUENCES)]))


def telling() -> type[GenerationActor]:
    class Telling(GenerationActor):  # here, so that its workers need not import this file
        async def packing(self) -> list[bool]:
            """Of each worker: whether it packs linear weights."""

            def packs(_: Any) -> bool:
                from vllm import _custom_ops

                return _custom_ops._supports_onednn

            return await self._engine._engine.collective_rpc(packs)

    return Telling


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "engine"), [("shm", PACKED), ("gloo", UNPACKED)])
def test_two_workers_compute_with_what_was_published(ray_local, tiny_llama, backend: Backend, engine: GenerationConfig):
    group = placement_group([{"CPU": 2}], strategy="STRICT_PACK")
    ray.get(group.ready())
    place = PlacementGroupSchedulingStrategy(group, 0)
    actor = start_actor("a", tiny_llama, backend, engine, place=place, kind=telling())
    ray.get(actor.ready.remote())
    if not engine.packed_weights:
        assert ray.get(actor.packing.remote()) == [False, False]
    sender = start_sender(tiny_llama, backend, workers_per_engine=2)
    ray.get(sender.retarget.remote({"a": actor}))
    assert both(sender, actor) < TOLERANCE_NATS
    for version in (1, 2):  # the second time the receivers have met what the first one left
        ray.get(sender.stage.remote(version))
        assert both(sender, actor) > 0.1
        (ack,) = ray.get(sender.send.remote())
        assert (ack.version, ack.error) == (version, "")
        assert both(sender, actor) < TOLERANCE_NATS
    engine_process = psutil.Process(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))
    workers = engine_process.children(recursive=True)
    assert len(workers) >= 2
    maps = [Path(f"/proc/{worker.pid}/maps").read_text() for worker in workers]
    assert "/dev/shm/psm_" in "".join(maps), "they share memory"
    named = re.compile(r"/dev/shm/(?!plasma)\S+$")
    assert not [line for found in maps for line in found.splitlines() if named.search(line)]
    for handle in (actor, sender):
        ray.kill(handle)
    remove_placement_group(group)
    _, alive = psutil.wait_procs(workers, timeout=LEAVES_WITHIN_S)
    assert alive == []  # on a GPU they would hold its memory
    # Semaphores have the number of the process that made them.
    left = [
        path.name
        for path in Path("/dev/shm").glob("sem.*")
        for p in (engine_process, *workers)
        if f"-{p.pid}-" in path.name
    ]
    assert left == []
