"""A node that will be taken away, as Ray is told beforehand: the run saves while all of it is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import ray

LOOK_S = 5.0
"""How often Ray is asked, at most."""


def draining_nodes() -> dict[str, float]:
    """Nodes that Ray was told to drain, by id, with the time in seconds since the epoch at which they will be gone; 0
    where none was told. Ray has no public call for it."""
    found: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return {node: milliseconds / 1000 for node, milliseconds in found.items()}


class Preemption:
    """Of one attempt. A node counts once."""

    def __init__(
        self,
        log: logging.Logger,
        draining: Callable[[], Mapping[str, float]] = draining_nodes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``draining``: as ``draining_nodes``."""
        self._log, self._draining, self._clock = log, draining, clock
        self._known: set[str] = set()
        self._looked = -LOOK_S

    def checkpoint_due(self) -> bool:
        """Whether a node is announced to leave that was not before."""
        now = self._clock()
        if now - self._looked < LOOK_S:
            return False
        self._looked = now
        leaving = {node: at for node, at in self._draining().items() if node not in self._known}
        self._known |= leaving.keys()
        for node, at in leaving.items():
            when = f"in {max(0.0, at - now):.0f} s" if at else "soon"
            self._log.warning(
                "node %s leaves %s: a checkpoint is written before", node[:8], when, extra={"event": "node leaves"}
            )
        return bool(leaving)
