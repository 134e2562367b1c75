"""Weights inside running engines are those that were published, whatever happens on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from actors.config import GenerationConfig
from support.engines import SEQUENCES, largest_difference, start_actor, start_sender

GREEDY = GenerationConfig(temperature=0.0, segment_length=64, max_concurrent_requests=8)
TOLERANCE_NATS = 1e-4
REPEATED = [*SEQUENCES, SEQUENCES[-1]]
"""The last comes from the prefix cache, if an update has not dropped it."""


@pytest.fixture(scope="module")
def served(ray_local, tiny_llama_tied) -> Iterator[tuple[Any, Any]]:
    """Of a model with tied embeddings; others are in test_architectures.py."""
    sender, actor = start_sender(tiny_llama_tied, "shm"), start_actor("a", tiny_llama_tied, "shm", GREEDY)
    ray.get([sender.retarget.remote({"a": actor}), actor.ready.remote()])
    yield sender, actor
    ray.get(sender.shutdown.remote())
    ray.kill(actor)
    ray.kill(sender)


def both(sender: Any, actor: Any) -> float:
    return largest_difference(*ray.get([actor.score.remote(REPEATED), sender.score.remote(REPEATED)]))


@pytest.mark.slow
def test_engine_computes_with_the_published_weights(served):
    sender, actor = served
    assert both(sender, actor) < TOLERANCE_NATS  # what it was started with
    for version in (1, 2, 3):
        ray.get(sender.stage.remote(version))
        assert both(sender, actor) > 0.1  # the sender has moved on, the engine not yet
        (ack,) = ray.get(sender.send.remote())
        assert (ack.actor, ack.version, ack.error) == ("a", version, "")
        assert both(sender, actor) < TOLERANCE_NATS


@pytest.mark.slow
def test_damaged_bytes_are_rejected_and_sound_ones_accepted_afterwards(served):
    sender, actor = served
    ray.get(sender.stage.remote(10, damaged=True))
    (ack,) = ray.get(sender.send.remote())
    assert "checksum" in ack.error
    ray.get(sender.stage.remote(11))
    (ack,) = ray.get(sender.send.remote())
    assert (ack.version, ack.error) == (11, "")
    assert both(sender, actor) < TOLERANCE_NATS


@pytest.mark.slow
def test_nothing_is_sent_twice_to_who_has_it(served):
    sender, _ = served
    ray.get(sender.stage.remote(20))
    ray.get(sender.send.remote())
    (ack,) = ray.get(sender.send.remote())
    assert (ack.version, ack.seconds) == (20, 0.0)


@pytest.fixture(scope="module")
def over_gloo(ray_local, tiny_llama) -> Iterator[tuple[Any, dict[str, Any]]]:
    sender = start_sender(tiny_llama, "gloo")
    actors = {name: start_actor(name, tiny_llama, "gloo", GREEDY) for name in ("a", "b")}
    ray.get([actor.ready.remote() for actor in actors.values()])
    yield sender, actors
    for handle in (*actors.values(), sender):
        ray.kill(handle)


@pytest.mark.slow
@pytest.mark.chaos
def test_gloo_reaches_several_engines_and_survives_the_death_of_one(over_gloo):
    sender, actors = over_gloo
    ray.get(sender.retarget.remote(actors))
    ray.get(sender.stage.remote(1))
    assert sorted((a.actor, a.version, a.error) for a in ray.get(sender.send.remote())) == [("a", 1, ""), ("b", 1, "")]
    assert max(both(sender, actor) for actor in actors.values()) < TOLERANCE_NATS
    ray.kill(actors["b"])
    ray.get(sender.stage.remote(2))
    acks = {ack.actor: ack for ack in ray.get(sender.send.remote())}
    assert acks["b"].error and not acks["a"].error
    assert both(sender, actors["a"]) < TOLERANCE_NATS
    ray.get(sender.retarget.remote({"a": actors["a"]}))
    ray.get(sender.stage.remote(3))
    (ack,) = ray.get(sender.send.remote())
    assert (ack.version, ack.error) == (3, "")
    assert both(sender, actors["a"]) < TOLERANCE_NATS
