"""The driver's end of a run's mailbox: what was asked, kept until somebody acts on it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cluster.workers.control import Mailbox, Request
from cluster.workers.ray_calls import Call, Calls, WorkerFailure


@dataclass
class Asked:
    """What a run still has to do; a request outlives the attempt in which it came."""

    checkpoint: bool = False
    stop: bool = False
    actors: deque[int] = field(default_factory=deque)
    """Changes of their number that nobody has acted on."""
    more_actors: int = 0
    """Than the config has, by the changes that were acted on."""
    taken: list[str] = field(default_factory=list)
    """Keys of the requests that have been taken, in order."""


class Inbox:
    """Of one attempt. Whoever waits may wait for ``awaited`` too, and then calls ``take``."""

    def __init__(self, mailbox: Mailbox, calls: Calls, asked: Asked | None = None) -> None:
        """``mailbox``, ``asked``: of the run."""
        self._mailbox, self._calls, self._asked = mailbox, calls, asked or Asked()
        self._awaited: Call | None = None
        self._await_next()

    @property
    def awaited(self) -> Call | None:
        """Answers with the next request; None: the mailbox died, and ``poll`` opens it again."""
        return self._awaited

    def take(self) -> None:
        """Take over what ``awaited`` was answered, and wait for the next."""
        try:
            self._keep(self._calls.answer(self._awaited))
        except WorkerFailure:
            self._awaited = None
            return
        self._await_next()

    def _keep(self, request: Request | None) -> None:
        if request is None or request.key in self._asked.taken:
            return
        self._asked.taken.append(request.key)
        match request.what:
            case "actors":
                self._asked.actors += [request.count] if request.count else []
            case "checkpoint":
                self._asked.checkpoint = True
            case "stop":
                self._asked.stop = True

    def poll(self) -> None:
        """Take what has come, without waiting."""
        if self._awaited is None and self._mailbox.open_again():
            self._await_next()
        while self._awaited is not None and self._calls.first_done([self._awaited], 0):
            self.take()

    def next_change(self) -> int:
        """A change of their number that was asked for: actors to add, or negative ones to let go; 0: none is left."""
        return self._asked.actors.popleft() if self._asked.actors else 0

    def changed(self, actors: int) -> None:
        """So many more actors, or fewer, are wanted from now on, in later attempts too."""
        self._asked.more_actors += actors

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        due, self._asked.checkpoint = self._asked.checkpoint, False
        return due

    @property
    def stop_asked(self) -> bool:
        """Whether the run was asked to end."""
        return self._asked.stop

    def _await_next(self) -> None:
        self._awaited = self._mailbox.worker.call("next_request", *self._asked.taken[-1:])
