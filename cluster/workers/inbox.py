"""The driver's end of a run's mailbox: what was asked, kept until somebody acts on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.workers.control import Mailbox, Request
from cluster.workers.ray_calls import Call, Calls, WorkerFailure

WITHDRAWN_S = 5.0
"""Longest wait for a mailbox that may stand still."""


@dataclass
class Asked:
    """What a run still has to do; a request outlives the attempt in which it came."""

    checkpoint: bool = False
    stop: bool = False
    actors: list[int] = field(default_factory=list)
    """Changes of their number that nobody has acted on."""
    more_actors: int = 0
    """Than the config has, in the end of the last attempt."""


class Inbox:
    """Of one attempt. Whoever waits may wait for ``awaited`` too, and then calls ``take``."""

    def __init__(self, mailbox: Mailbox, calls: Calls, asked: Asked | None = None) -> None:
        """``mailbox``, ``asked``: of the run."""
        self._mailbox, self._calls, self._asked = mailbox, calls, asked or Asked()
        self._await_next()

    @property
    def awaited(self) -> Call:
        """Answers with the next request."""
        return self._awaited

    def take(self) -> None:
        """Take over what ``awaited`` was answered, and wait for the next."""
        request = self._answered()
        self._await_next()
        self._keep(request)

    def _answered(self) -> Request | None:
        try:
            request: Request | None = self._calls.answer(self._awaited)
        except WorkerFailure:
            self._mailbox.open_again()
            return None
        return request

    def _keep(self, request: Request | None) -> None:
        if request is None:
            return
        match request.what:
            case "actors":
                self._asked.actors.append(request.count)
            case "checkpoint":
                self._asked.checkpoint = True
            case "stop":
                self._asked.stop = True

    def poll(self) -> None:
        """Take what has come, without waiting."""
        while self._calls.first_done([self._awaited], 0):
            self.take()

    def actor_changes(self) -> list[int]:
        """Changes that were asked for since the last call: actors to add, or negative ones to let go."""
        changes, self._asked.actors = self._asked.actors, []
        return changes

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        due, self._asked.checkpoint = self._asked.checkpoint, False
        return due

    @property
    def stop_asked(self) -> bool:
        """Whether the run was asked to end."""
        return self._asked.stop

    def close(self) -> None:
        """Take what came until now. What comes later waits in the mailbox for the inbox of the next attempt."""
        self._mailbox.worker.tell("withdraw")
        if self._calls.first_done([self._awaited], WITHDRAWN_S):
            self._keep(self._answered())

    def _await_next(self) -> None:
        self._awaited = self._mailbox.worker.call("next_request")
