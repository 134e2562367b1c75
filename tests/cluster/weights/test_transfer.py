"""Weights inside running engines are those that were published, whatever happens on the way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.config import GenerationConfig
from actors.weights.receivers import SharedMemoryReceiver
from cluster.weights import staging
from cluster.weights.staging import Slot
from support.engines import Sender, start_actor
from support.paths import REPOSITORY

pytestmark = pytest.mark.slow

GREEDY = GenerationConfig(temperature=0.0, segment_length=64, max_concurrent_requests=8)
TOLERANCE_NATS = 1e-4
# Over 128 tokens: on CPU only such prompts come from the prefix cache when they are asked for again.
SEQUENCES = [np.random.default_rng(i).integers(3, 128, n).tolist() for i, n in enumerate((5, 60, 300, 300))]


@pytest.fixture(scope="module", params=["tied", "untied"])
def served(request, ray_local, tiny_llama, tiny_llama_tied) -> Iterator[tuple[Any, Any]]:
    folder = tiny_llama_tied if request.param == "tied" else tiny_llama
    sender, actor = Sender.remote(folder, "shm"), start_actor("a", folder, "shm", GREEDY)
    ray.get([sender.retarget.remote({"a": actor}), actor.ready.remote()])
    yield sender, actor
    ray.get(sender.shutdown.remote())
    ray.kill(actor)
    ray.kill(sender)


def largest_difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(ours, theirs, strict=True))


def both(sender: Any, actor: Any) -> float:
    return largest_difference(*ray.get([actor.score.remote(SEQUENCES), sender.logps.remote(SEQUENCES)]))


def test_engine_computes_with_the_published_weights(served):
    sender, actor = served
    assert both(sender, actor) < TOLERANCE_NATS  # what it was started with
    for version in (1, 2, 3):
        ray.get(sender.stage.remote(version))
        assert both(sender, actor) > 0.1  # the sender has moved on, the engine not yet
        (ack,) = ray.get(sender.send.remote())
        assert (ack.actor, ack.version, ack.error) == ("a", version, "")
        assert both(sender, actor) < TOLERANCE_NATS


def test_damaged_bytes_are_refused_and_sound_ones_accepted_afterwards(served):
    sender, actor = served
    ray.get(sender.stage.remote(10, damaged=True))
    (ack,) = ray.get(sender.send.remote())
    assert "checksum" in ack.error
    ray.get(sender.stage.remote(11))
    (ack,) = ray.get(sender.send.remote())
    assert (ack.version, ack.error) == (11, "")
    assert both(sender, actor) < TOLERANCE_NATS


def test_nothing_is_sent_twice_to_who_has_it(served):
    sender, _ = served
    ray.get(sender.stage.remote(20))
    ray.get(sender.send.remote())
    (ack,) = ray.get(sender.send.remote())
    assert (ack.version, ack.seconds) == (20, 0.0)


def test_a_checksum_covers_every_byte():
    tensor = torch.arange(50, dtype=torch.float32)
    slot = Slot(shared=False)
    slot.fill(1, [("w", torch.float32, (50,))], [[("w", tensor)]])
    receiver = SimpleNamespace(_bytes=lambda update: slot.bytes)
    assert torch.equal(SharedMemoryReceiver._verified(receiver, slot.update)["w"], tensor)
    for byte in (0, 99, 199):
        slot.bytes[byte] += 1
        with pytest.raises(RuntimeError, match="arrived damaged"):
            SharedMemoryReceiver._verified(receiver, slot.update)
        slot.bytes[byte] -= 1


@given(
    layers=st.lists(
        st.lists(st.tuples(st.integers(0, 700), st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]))),
        min_size=1,
    ),
    limits=st.sampled_from([(64, 64), (256, 64), (300, 100), (1024, 1024)]),
    before=st.integers(0, 255),
)
def test_buckets_tile_what_was_staged_and_every_weight_arrives(
    layers: list[list[tuple[int, torch.dtype]]], limits: tuple[int, int], before: int
) -> None:
    weights = [
        [(f"{i}.{j}", torch.arange(n).remainder(251).to(dtype)) for j, (n, dtype) in enumerate(layer)]
        for i, layer in enumerate(layers)
    ]
    announced = [(name, weight.dtype, tuple(weight.shape)) for layer in weights for name, weight in layer]
    slot = Slot(shared=False)
    with mock.patch.multiple(staging, BUCKET_BYTES=limits[0], CHUNK_BYTES=limits[1]):
        slot.fill(1, announced, weights)
        slot.bytes.fill_(before)  # what an earlier version left between the weights
        slot.fill(2, announced, weights)
    starts, ends = [b[0] for b in slot.update.buckets], [b[1] for b in slot.update.buckets]
    assert [*starts, len(slot.bytes)] == [0, *ends]
    assert all(end - start <= limits[0] for start, end in zip(starts, ends, strict=True))
    receiver = SimpleNamespace(_bytes=lambda update: slot.bytes)
    arrived = SharedMemoryReceiver._verified(receiver, slot.update)
    assert all(torch.equal(arrived[name], weight) for layer in weights for name, weight in layer)


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ([("v", torch.zeros(50))], "v .* came where w"),
        ([("w", torch.zeros(49))], "came where w"),
        ([("w", torch.zeros(50, dtype=torch.bfloat16))], "came where w"),
        ([("w", torch.zeros(50))] * 2, "came where nothing"),
        ([], "w was announced and did not come"),
    ],
)
def test_only_what_was_announced_is_staged(weights: list[tuple[str, torch.Tensor]], complaint: str) -> None:
    slot = Slot(shared=False)
    with pytest.raises(RuntimeError, match=complaint):
        slot.fill(1, [("w", torch.float32, (50,))], [weights])
    assert slot.version == -1


STAGE_AND_WAIT = """
import sys, torch
from cluster.weights.staging import Slot
slot = Slot(shared=True)
slot.fill(1, [("w", torch.float32, (50,))], [[("w", torch.arange(50, dtype=torch.float32))]])
print(slot.update.path, flush=True)
sys.stdin.read()
"""


def test_shared_memory_is_read_by_others_and_gone_when_the_sender_is_killed():
    kept = set(Path("/dev/shm").iterdir())
    sender = subprocess.Popen(
        [sys.executable, "-c", STAGE_AND_WAIT],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    path = sender.stdout.readline().strip()
    assert torch.equal(torch.from_file(path, shared=True, size=50, dtype=torch.float32), torch.arange(50.0))
    sender.kill()
    sender.communicate()
    assert not Path(path).exists()
    assert not {file for file in set(Path("/dev/shm").iterdir()) - kept if file.name.startswith("sapo-")}


def test_a_released_slot_has_given_its_memory_back():
    slot = Slot(shared=True)
    slot.fill(1, [("w", torch.float32, (50,))], [[("w", torch.zeros(50))]])
    path = Path(slot.update.path)
    assert path.exists()
    slot.release()
    assert not path.exists()


@pytest.fixture(scope="module")
def over_gloo(ray_local, tiny_llama) -> Iterator[tuple[Any, dict[str, Any]]]:
    sender = Sender.remote(tiny_llama, "gloo")
    actors = {name: start_actor(name, tiny_llama, "gloo", GREEDY) for name in ("a", "b")}
    ray.get([actor.ready.remote() for actor in actors.values()])
    yield sender, actors
    for handle in (*actors.values(), sender):
        ray.kill(handle)


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
