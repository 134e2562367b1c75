"""Ray's address, ports of this machine, the hub: whether what a run talks to answers."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from cluster.doctor.finding import Finding, ok, warning, wrong

ANSWER_S = 3.0
"""Longest wait for an answer."""
HUB = ("huggingface.co", 443)


def network_findings(address: str | None, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """
    Args:
        address: of a Ray cluster, from the config; default: RAY_ADDRESS.
    """
    return [ray_finding(address or environment.get("RAY_ADDRESS")), port_finding(), hub_finding(environment)]


def ray_finding(address: str | None) -> Finding:
    """Whether a cluster is named, and answers."""
    if not address:
        return ok("ray", "no cluster is named: a run starts Ray on this machine")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return ok("ray", f"{address}: Ray finds it by itself")
    if _answers(host, int(port)):
        return ok("ray", f"{address} answers")
    remedy = "start it with `ray start --head`, or unset RAY_ADDRESS and cluster.address to run on this machine alone"
    return wrong("ray", f"{address} does not answer", remedy)


def port_finding() -> Finding:
    """Whether this machine can talk to itself by a port of the system's choice, as ranks and Ray do."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            if _answers("127.0.0.1", port):
                return ok("ports", "a port opens and answers on 127.0.0.1")
            return wrong("ports", f"127.0.0.1:{port} was opened and does not answer", "allow loopback in the firewall")
    except OSError as error:
        return wrong("ports", f"no port can be opened on 127.0.0.1: {error.strerror}", "allow loopback in the sandbox")


def hub_finding(environment: Mapping[str, str]) -> Finding:
    """Models and datasets by hub name are downloaded."""
    if environment.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return ok("hub", "HF_HUB_OFFLINE is set: only what is in the cache, and local folders")
    if _answers(*HUB):
        return ok("hub", f"{HUB[0]} answers")
    remedy = "use local folders for model.path and data.path, or set HF_ENDPOINT to a mirror"
    return warning("hub", f"{HUB[0]} does not answer", remedy)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=ANSWER_S):
            return True
    except OSError:
        return False
