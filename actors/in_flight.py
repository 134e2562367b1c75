"""How many requests are in flight, and for how long there were none."""

from __future__ import annotations

import time


class InFlight:
    """Entered by every request while it runs."""

    def __init__(self) -> None:
        self.count = 0
        self._idle_s = 0.0
        self._since: float | None = None

    @property
    def idle_s(self) -> float:
        """Seconds without any request since the first."""
        running_idle = time.monotonic() - self._since if self._since is not None and not self.count else 0.0
        return self._idle_s + running_idle

    def __enter__(self) -> None:
        self._idle_s = self.idle_s
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        self._since = time.monotonic()
