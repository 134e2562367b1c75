"""What comes back over process borders when weights are sent. Imports neither vLLM nor torch: the driver reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ack:
    """An actor's answer to a publication."""

    actor: str
    version: int
    seconds: float
    error: str = ""
    """Why the version did not arrive, after a retry on a rebuilt group; empty when it did."""
