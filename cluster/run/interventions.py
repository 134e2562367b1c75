"""What breaks into the steps of a run: signals, requests through its mailbox, nodes that leave, too many skipped steps
in a row."""

from __future__ import annotations

from cluster.run.preemption import Preemption
from cluster.run.skips import Skips
from cluster.run.stopping import StopRequest
from cluster.sources.base import Metrics
from cluster.workers.inbox import Inbox


class Interventions:
    """Of one attempt."""

    def __init__(self, stop: StopRequest, inbox: Inbox, skips: Skips, preemption: Preemption) -> None:
        self._stop, self._inbox, self._skips, self._preemption = stop, inbox, skips, preemption

    def look(self, step: int, metrics: Metrics) -> None:
        """Take note of what came during ``step``.

        Raises:
            WorkerFailure: too many steps in a row were skipped.
        """
        self._skips.count(step, metrics)
        self._inbox.poll()

    @property
    def ending(self) -> bool:
        """Whether the run was asked to end."""
        return bool(self._stop.signum) or self._inbox.stop_asked

    @property
    def signum(self) -> int:
        """The signal that asked for the end; 0: none did."""
        return self._stop.signum

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint was asked for since the last call, or a node will leave."""
        asked, leaving = self._inbox.checkpoint_due(), self._preemption.checkpoint_due()
        return asked or leaving
