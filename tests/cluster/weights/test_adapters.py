"""LoRA adapters published alone, applied by running engines."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from actors.config import GenerationConfig
from support.engines import ADAPTERS, SEQUENCES, AdapterSender, largest_difference, start_actor

REPEATED = [*SEQUENCES, SEQUENCES[-1]]
"""The last comes from the prefix cache, if an update has not dropped it."""


@pytest.fixture(scope="module")
def sender(ray_local, tiny_llama: str) -> Any:
    handle = ray.remote(num_cpus=0)(AdapterSender).remote(tiny_llama, "shm")
    yield handle
    ray.kill(handle)


@pytest.mark.slow
def test_engines_apply_every_version_of_the_adapters_and_nothing_else_travels(sender, tiny_llama):
    actor = start_actor("a", tiny_llama, "shm", GenerationConfig(), adapters=ADAPTERS)
    ray.get([sender.retarget.remote({"a": actor}), actor.ready.remote()])

    def off() -> float:
        return largest_difference(*ray.get([actor.score.remote(REPEATED), sender.score.remote(REPEATED)]))

    assert off() < 1e-4  # before any has come
    for version in (1, 2, 3):
        ray.get(sender.stage.remote(version))
        assert off() > 0.1  # the sender has moved on, the engine not yet
        (ack,) = ray.get(sender.send.remote())
        assert (ack.version, ack.error) == (version, "")
        assert off() < 1e-4
    # 2 layers of q, k, v, o, gate, up and down, two factors each, in fp32.
    assert ray.get(sender.bytes_staged.remote()) < 40_000
    ray.get(sender.stage.remote(4, damaged=True))
    (ack,) = ray.get(sender.send.remote())
    assert "checksum" in ack.error
    ray.kill(actor)


@pytest.mark.slow
def test_an_engine_that_can_not_adapt_the_layers_says_so_with_the_remedy(ray_local, tmp_path):
    from support.architectures import build

    build("gpt2").save_pretrained(tmp_path)
    actor = start_actor("a", str(tmp_path), "shm", GenerationConfig(), adapters=ADAPTERS)
    with pytest.raises(
        ray.exceptions.ActorDiedError, match=r"GPT2LMHeadModel does not support LoRA yet; set weights\.lora"
    ):
        ray.get(actor.ready.remote())
