"""Looks whether a running actor gets on: it answers, and while requests are in flight some of them end."""

from __future__ import annotations

from collections.abc import Callable

from actors.messages import ActorStatus
from cluster.workers.patience import Patience
from cluster.workers.ray_calls import TICK_S, Calls, Worker, WorkerFailure


class Watch:
    """Of one actor, from the moment at which it runs."""

    def __init__(self, worker: Worker, calls: Calls, stall_s: float, clock: Callable[[], float]) -> None:
        """``stall_s``: it is not given up for a shorter stretch, in seconds."""
        self._worker, self._calls, self._clock = worker, calls, clock
        self._patience = Patience(stall_s)
        self._since = clock()
        """When it was last seen to get on."""
        self._tokens = 0
        self._answered = False
        self._ask()

    @property
    def answers(self) -> bool:
        """Whether it gives signs of life."""
        return self._answered

    def complaint(self) -> str:
        """Why it should be given up; empty while it should not."""
        answered = self._answered or bool(self._calls.first_done([self._asked], 0))
        if answered and not self._answered:
            try:
                self._note(self._calls.answer(self._asked))
            except WorkerFailure:
                return ""  # ``run`` has failed with it, and that is where the actor is replaced
            self._answered = True
        still_s = self._clock() - self._since
        if still_s > self._patience.limit_s:
            return f"{'nothing finished' if answered else 'no answer'} for {still_s:.0f} s"
        if answered and self._clock() - self._asked_at >= TICK_S:
            self._ask()
        return ""

    def _note(self, status: ActorStatus) -> None:
        now = self._clock()
        if status.tokens > self._tokens:
            self._patience.observe(now - self._since)
        if status.tokens > self._tokens or not status.in_flight:
            self._since = now
        self._tokens = status.tokens

    def _ask(self) -> None:
        self._asked, self._asked_at = self._worker.call("status"), self._clock()
        self._answered = False
