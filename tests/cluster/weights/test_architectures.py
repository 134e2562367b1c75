"""Tiny models of many architectures go into a running engine as published, or are refused at the start by name."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray

from actors.config import GenerationConfig
from actors.engine import SegmentEngine
from actors.generator import GenerationActor
from actors.messages import EngineSpec
from contracts.errors import UserError
from support.architectures import DENSE, EXPERTS, REFUSED, build
from support.engines import MAX_LENGTH, SEQUENCES, Sender, largest_difference, start_actor

TOLERANCE_NATS = 1e-4
LOOSER = {"gemma2": 1e-3}
"""As far off before the first publication, perhaps by how vLLM's CPU kernel computes the cap of attention scores."""


def restarting() -> type[GenerationActor]:
    class Restarting(GenerationActor):  # here, so that its workers need not import this file
        """One process for many engines: most of an engine's start is imports."""

        async def restart(self, folder: str) -> None:
            spec = EngineSpec(folder, "float32", MAX_LENGTH, ends=(2,), seed=0, backend="shm", use_gpu=False)
            self._engine = SegmentEngine(spec, self._config)

    return Restarting


class Ends(NamedTuple):
    """Both ends of the transfer; the processes serve one architecture after the other."""

    sender: Any
    actor: Any
    folder: Path
    versions: Iterator[int]
    """The sender sends the newest that it holds, whichever model's."""

    def serve(self, architecture: str) -> None:
        folder = self.folder / architecture
        if not folder.exists():
            build(architecture).save_pretrained(folder)
        ray.get([self.sender.retarget.remote({}), self.sender.open.remote(str(folder))])
        ray.get(self.actor.restart.remote(str(folder)))
        ray.get(self.sender.retarget.remote({"a": self.actor}))

    def difference(self) -> float:
        return largest_difference(*ray.get([end.score.remote(SEQUENCES) for end in (self.actor, self.sender)]))


def open_ends(folder: Path, first: str) -> Iterator[Ends]:
    build(first).save_pretrained(folder / first)
    sender = ray.remote(num_cpus=0)(Sender).remote(str(folder / first), "shm")
    actor = start_actor("a", str(folder / first), "shm", GenerationConfig(), kind=restarting())
    ray.get([sender.score.remote([[3, 4]]), actor.ready.remote()])
    yield Ends(sender, actor, folder, count(1))
    for handle in (actor, sender):
        ray.kill(handle)


@pytest.fixture(scope="module")
def dense(ray_local, tmp_path_factory) -> Iterator[Ends]:
    yield from open_ends(tmp_path_factory.mktemp("dense"), DENSE[0])


@pytest.fixture(scope="module")
def experts(ray_local, tmp_path_factory) -> Iterator[Ends]:
    """vLLM forms the group for experts when a process starts its first engine."""
    yield from open_ends(tmp_path_factory.mktemp("experts"), EXPERTS[0])


def check(ends: Ends, architecture: str) -> None:
    tolerance = LOOSER.get(architecture, TOLERANCE_NATS)
    ends.serve(architecture)
    assert ends.difference() < tolerance
    for version in islice(ends.versions, 2):
        ray.get(ends.sender.stage.remote(version))
        assert ends.difference() > 0.05  # the sender has moved on, the engine not yet
        (ack,) = ray.get(ends.sender.send.remote())
        assert (ack.version, ack.error) == (version, "")
        assert ends.difference() < tolerance, f"version {version}"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", DENSE)
def test_a_dense_model_arrives_as_published(dense, architecture):
    check(dense, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", EXPERTS)
def test_a_mixture_of_experts_arrives_as_published(experts, architecture):
    check(experts, architecture)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "named"), REFUSED.items())
def test_what_the_engine_would_not_take_whole_is_refused_by_name(experts, architecture, named):
    experts.serve(architecture)
    ray.get(experts.sender.stage.remote(next(experts.versions)))
    with pytest.raises(ray.exceptions.RayTaskError) as refused:
        ray.get(experts.sender.send.remote())
    assert isinstance(refused.value.cause, UserError)
    message = str(refused.value.cause)
    assert named in message
    assert "\n" not in message
