"""A world without Ray for tests of what decides: calls that the test answers, workers and placements that remember."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from buffer.messages import BufferStats


class FakeCall:
    """A call under way; the test ends it."""

    def __init__(self, what: str) -> None:
        self.what, self.done = what, False
        self._result: Any = None
        self._error: Exception | None = None

    def answer(self, result: Any = None) -> None:
        self.done, self._result = True, result

    def fail(self, error: Exception) -> None:
        self.done, self._error = True, error

    def result(self) -> Any:
        assert self.done, f"{self.what} has not answered"
        if self._error:
            raise self._error
        return self._result


class FakeCalls:
    """Waits without waiting: where nothing is done, the next thing that happens in the world happens."""

    def __init__(self, *happening: Callable[[], None]) -> None:
        self.happening = list(happening)

    def first_done(self, calls: Sequence[Any], timeout_s: float) -> list[Any]:
        done = [call for call in calls if call.done]
        if not done and timeout_s > 0:
            assert self.happening, f"would wait for ever for {[call.what for call in calls]}"
            self.happening.pop(0)()
            done = [call for call in calls if call.done]
        return done[:1]

    def answer(self, call: Any) -> Any:
        return call.result()


@dataclass
class FakeWorker:
    name: str
    calls: list[tuple[str, tuple[object, ...], FakeCall]] = field(default_factory=list)
    killed: bool = False
    handle: str = "handle"
    answers: dict[str, Any] = field(default_factory=dict)
    """Methods that answer at once."""
    failures: dict[str, Exception] = field(default_factory=dict)
    """Methods that fail at once."""

    def call(self, method: str, *arguments: object, lane: str | None = None) -> FakeCall:
        call = FakeCall(f"{self.name}.{method}")
        self.calls.append((method, arguments, call))
        if method in self.answers:
            call.answer(self.answers[method])
        if method in self.failures:
            call.fail(self.failures[method])
        return call

    def tell(self, method: str, *arguments: object) -> None:
        self.call(method, *arguments)

    def last(self, method: str) -> FakeCall:
        """The newest call of a method."""
        return next(call for name, _, call in reversed(self.calls) if name == method)

    def kill(self) -> None:
        self.killed = True


@dataclass
class FakeMailbox:
    """Of a run."""

    worker: FakeWorker
    again: FakeWorker | None = None
    """In its place when it has died."""

    def open_again(self) -> bool:
        if self.again:
            self.worker, self.again = self.again, None
            return True
        return False


@dataclass
class FakePlacement:
    name: str
    bundles: list[dict[str, float]] = field(default_factory=lambda: [{"CPU": 1.0}])
    removed: bool = False
    asked: FakeCall = field(default_factory=lambda: FakeCall("place"))

    def ready(self) -> FakeCall:
        return self.asked

    def remove(self) -> None:
        self.removed = True


@dataclass
class FakeFactory:
    placements: dict[str, FakePlacement] = field(default_factory=dict)
    workers: dict[str, FakeWorker] = field(default_factory=dict)

    def place(self, name: str) -> FakePlacement:
        return self.placements.setdefault(name, FakePlacement(name))

    def spawn(self, name: str, placement: FakePlacement) -> FakeWorker:
        return self.workers.setdefault(name, FakeWorker(name))

    def adopt(self, worker: FakeWorker) -> FakeCall:
        return self.workers.setdefault(worker.name, worker).call("adopt")


@dataclass
class FakeLeases:
    inserted: int = 0
    released: list[str] = field(default_factory=list)

    def stats(self) -> BufferStats:
        return BufferStats(inserted=self.inserted)

    def release(self, actor: str) -> list[int]:
        self.released.append(actor)
        return []


@dataclass
class FakeSync:
    targets: list[set[str]] = field(default_factory=list)
    sends: list[FakeCall] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def retarget(self, actors: dict[str, Any]) -> None:
        self.order.append("retarget")
        self.targets.append(set(actors))

    def send(self) -> FakeCall:
        self.order.append("send")
        self.sends.append(FakeCall("send"))
        return self.sends[-1]

    def stacks(self) -> tuple[str, FakeCall]:
        asked = FakeCall("stacks")
        asked.answer("in send")
        return "rank-0", asked
