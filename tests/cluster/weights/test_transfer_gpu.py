"""Weights reach an engine on a GPU by every backend, also one that slept, and what arrives is verified."""

from __future__ import annotations

from typing import Any

import pytest
import ray
import torch

from actors.config import GenerationConfig
from actors.messages import Backend
from support.engines import SEQUENCES, mean_difference, start_actor, start_sender

GREEDY = GenerationConfig(
    temperature=0.0, max_concurrent_requests=8, gpu_memory_utilization=0.15, enforce_eager=True, kv_cache_bytes=1 << 28
)
SAME, OTHER = 0.05, 0.1
"""Nats per token in bfloat16: what two programs may be apart, and what other weights are apart at least."""
CACHE_BYTES, FREED_BYTES = 6 << 30, 4 << 30
"""Of the cache alone, when the engine sleeps: more than tests in other workers take or give back meanwhile."""


def both(sender: Any, actor: Any) -> float:
    return mean_difference(*ray.get([actor.score.remote(SEQUENCES), sender.score.remote(SEQUENCES)]))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["shm", "gloo", "ipc", "nccl"])
def test_an_engine_on_a_gpu_computes_with_what_was_published(ray_local, tiny_llama, backend: Backend):
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs two GPUs: one for the sender, one for the engine")
    share = 1.0 if backend == "nccl" else 0.5
    actor = start_actor("a", tiny_llama, backend, GREEDY, dtype="bfloat16", gpus=share)
    sender = start_sender(tiny_llama, backend, dtype="bfloat16", gpus=share)
    try:
        ray.get([actor.ready.remote(), sender.retarget.remote({"a": actor})])
        assert both(sender, actor) < SAME
        for version in (1, 2):
            ray.get(sender.stage.remote(version))
            assert both(sender, actor) > OTHER
            (ack,) = ray.get(sender.send.remote())
            assert (ack.version, ack.error) == (version, "")
            assert both(sender, actor) < SAME
        ray.get(sender.stage.remote(3, damaged=True))
        (ack,) = ray.get(sender.send.remote())
        assert backend in ("ipc", "nccl") or "checksum" in ack.error
    finally:
        for handle in (actor, sender):
            ray.kill(handle)


@pytest.mark.gpu
@pytest.mark.slow
def test_an_engine_that_sleeps_gives_its_memory_back_and_wakes_up_with_the_next_version(ray_local, tiny_llama):
    generation = GREEDY.model_copy(update={"kv_cache_bytes": CACHE_BYTES})
    actor = start_actor("a", tiny_llama, "shm", generation, dtype="bfloat16", gpus=0.5)
    sender = start_sender(tiny_llama, "shm", dtype="bfloat16", gpus=0.5)
    try:
        ray.get([actor.ready.remote(), sender.retarget.remote({"a": actor})])
        for version in (1, 2):
            free, _ = torch.cuda.mem_get_info()
            ray.get(actor.sleep.remote())
            assert torch.cuda.mem_get_info()[0] - free > FREED_BYTES
            ray.get(sender.stage.remote(version))
            (ack,) = ray.get(sender.send.remote())
            assert (ack.version, ack.error) == (version, "")
            assert both(sender, actor) < SAME
    finally:
        for handle in (actor, sender):
            ray.kill(handle)
