"""The driver's end of a run's mailbox: what was asked, kept until somebody acts on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.workers.control import Request
from cluster.workers.ray_calls import Call, Calls, Worker, WorkerFailure


@dataclass
class Asked:
    """What a run still has to do; a request outlives the attempt in which it came."""

    checkpoint: bool = False
    stop: bool = False


class Inbox:
    """Of one attempt. Whoever waits may wait for ``awaited`` too, and then calls ``take``."""

    def __init__(self, open_mailbox: Callable[[], Worker], calls: Calls, asked: Asked | None = None) -> None:
        """
        Args:
            open_mailbox: called again if the mailbox dies.
            asked: of the run.
        """
        self._open, self._calls, self._asked = open_mailbox, calls, asked or Asked()
        self._actors: list[int] = []
        self._await_next()

    @property
    def mailbox(self) -> Worker:
        """As it is open now."""
        return self._mailbox

    @property
    def awaited(self) -> Call:
        """Answers with the next request."""
        return self._awaited

    def take(self) -> None:
        """Take over what ``awaited`` was answered, and wait for the next."""
        try:
            request: Request | None = self._calls.answer(self._awaited)
        except WorkerFailure:
            request = None
        self._await_next()
        if request is None:
            return
        match request.what:
            case "actors":
                self._actors.append(request.count)
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
        changes, self._actors = self._actors, []
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
        """End the mailbox: the run's name is free again."""
        self._mailbox.kill()

    def _await_next(self) -> None:
        self._mailbox = self._open()
        self._awaited = self._mailbox.call("next_request")
