"""Free TCP ports, for rendezvous."""

from __future__ import annotations

import socket


def free_port(host: str = "") -> int:
    """A port that nothing listens on now; the caller should take it soon."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
