"""Who gets which version, and what becomes of a transfer that fails. The transport only notes what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from ray import cloudpickle

from cluster.weights import publisher as module
from cluster.weights.client import ActorsClient, TransferFailed
from cluster.weights.publisher import Publisher
from cluster.weights.publisher_spec import PublisherSpec


class Transport:
    """Stands for ``connect``: counts groups, and raises what it is told to."""

    def __init__(self) -> None:
        self.groups: list[tuple[str, ...]] = []
        self.sent: list[tuple[tuple[str, ...], int]] = []
        self.left: list[tuple[str, ...]] = []
        self.errors: list[Exception | None] = []
        """Of the sends to come, in order; afterwards all succeed."""
        self.broken: set[str] = set()
        """Actors that no send gets past."""

    def connect(self, backend: str, client: ActorsClient) -> Any:
        names, transport = tuple(client.actors), self

        class Sender:
            def send_weights(self) -> None:
                error = transport.errors.pop(0) if transport.errors else None
                if error is not None:
                    raise error
                for name in names:
                    if name in transport.broken:
                        raise TransferFailed(name, "it is broken")
                transport.sent.append((names, client.staged.slot.version))

            def shutdown(self) -> None:
                transport.left.append(names)

        self.groups.append(names)
        return Sender()


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport()
    with mock.patch.object(module, "connect", transport.connect):
        yield transport


def made(*actors: str, version: int = 1) -> Publisher:
    publisher = PublisherSpec("gloo", timeout_s=1.0).build()
    publisher.retarget(dict.fromkeys(actors, mock.sentinel.handle))
    stage(publisher, version)
    return publisher


def stage(publisher: Publisher, version: int) -> None:
    publisher.stage(version, [("w", torch.float32, (2,))], [[("w", torch.zeros(2))]])


def test_the_newest_version_goes_to_all_and_is_not_sent_again(transport: Transport):
    publisher = made("a", "b")
    stage(publisher, 2)
    assert [(ack.actor, ack.version, ack.error) for ack in publisher.send()] == [("a", 2, ""), ("b", 2, "")]
    assert [(ack.actor, ack.version, ack.seconds) for ack in publisher.send()] == [("a", 2, 0.0), ("b", 2, 0.0)]
    assert transport.sent == [(("a", "b"), 2)]


def test_a_newcomer_alone_is_brought_up(transport: Transport):
    publisher = made("a")
    publisher.send()
    publisher.retarget({"a": mock.sentinel.handle, "b": mock.sentinel.handle})
    assert {ack.actor: ack.version for ack in publisher.send()} == {"a": 1, "b": 1}
    assert transport.sent == [(("a",), 1), (("b",), 1)]
    assert transport.left == [("a",)]  # the group without the newcomer is given up


@pytest.mark.parametrize(
    "error", [RuntimeError("gone\nmore"), TimeoutError(), OSError("reset"), TransferFailed("a", "x")]
)
def test_a_failed_transfer_is_tried_again_on_a_rebuilt_group(transport: Transport, error: Exception):
    transport.errors = [error]
    (ack,) = made("a").send()
    assert (ack.version, ack.error) == (1, "")
    assert transport.groups == [("a",), ("a",)]
    assert transport.left == [("a",)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("\n the first \nsecond"), "the first"),
        (TimeoutError(), "TimeoutError"),
        (TransferFailed("a", "why"), "why"),
    ],
)
def test_the_answer_says_why_also_where_the_error_has_no_message(transport: Transport, error: Exception, reason: str):
    transport.errors = [error, error]
    (ack,) = made("a").send()
    assert (ack.actor, ack.version, ack.error) == ("a", 1, reason)


def test_the_others_get_the_version_without_the_one_that_fails(transport: Transport):
    transport.broken = {"b"}
    publisher = made("a", "b", "c")
    assert {ack.actor: ack.error for ack in publisher.send()} == {"a": "", "b": "it is broken", "c": ""}
    assert transport.sent == [(("a", "c"), 1)]


def test_one_that_is_gone_is_not_asked_a_second_time(transport: Transport):
    transport.errors = [TransferFailed("b", "it died", gone=True)]
    assert {ack.actor: ack.error for ack in made("a", "b").send()} == {"a": "", "b": "it died"}
    assert transport.groups == [("a", "b"), ("a",)]
    assert transport.left == [("a", "b")]


def test_one_that_stays_silent_when_all_are_let_go_is_the_one_that_is_given_up(transport: Transport):
    transport.errors = [TimeoutError("no answer within 1 s: a, b, c")]
    with mock.patch.object(ActorsClient, "silent", lambda *_, **__: ["c"]):
        acks = {ack.actor: ack.error for ack in made("a", "b", "c").send()}
    assert acks == {"a": "", "b": "", "c": "no answer within 1 s: a, b, c"}
    assert transport.sent == [(("a", "b"), 1)]


def test_engines_on_one_machine_are_sent_to_each_alone(transport: Transport):
    transport.broken = {"b"}
    publisher = PublisherSpec("shm", timeout_s=1.0).build()
    publisher.retarget(dict.fromkeys(("a", "b"), mock.sentinel.handle))
    stage(publisher, 1)
    assert {ack.actor: ack.error for ack in publisher.send()} == {"a": "", "b": "it is broken"}
    assert transport.sent == [(("a",), 1)]
    publisher.shutdown()


def test_what_travels_is_the_specification():
    build = cloudpickle.loads(cloudpickle.dumps(PublisherSpec("gloo", timeout_s=1.0, workers_per_engine=2).build))
    assert isinstance(build(), Publisher)
    assert build().send() == []
