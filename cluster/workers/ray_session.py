"""Connects to a Ray cluster, or starts one on this machine for the time of a run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import ray
from ray._private import services
from ray._raylet import Config  # type: ignore[attr-defined]

from cluster.config.sections import ClusterConfig
from cluster.workers.leftovers import session_folder
from cluster.workers.resources import Hardware, connected_hardware
from contracts.errors import LONGEST_REASON, UserError, first_line

AUTH = "RAY_AUTH_MODE"
QUIET = "RAY_IGNORE_UNHANDLED_ERRORS"
"""Else Ray prints a traceback for each call of an attempt that ended while nobody waited for it any more. Why the
attempt ended is said in a line, and run.log has its traceback."""
CONNECT_S = 10.0
"""Longest wait for a cluster's port to answer."""


@contextmanager
def ray_session(config: ClusterConfig, needed_cpus: float, auth: str = "") -> Iterator[Hardware]:
    """Join ``config.address`` or RAY_ADDRESS; without either start Ray here, for the time of the context.

    Args:
        auth: RAY_AUTH_MODE of the cluster that is joined, where it is known and the environment has none.

    Raises:
        UserError: no cluster answers at the address.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield connected_hardware(address or "this process", local=False)
        return
    os.environ.setdefault(QUIET, "1")
    if address:
        if auth and not os.environ.get(AUTH):
            os.environ[AUTH] = auth
            Config.initialize("")  # Ray has read the environment when it was imported
        _join(address, config)
        try:
            yield connected_hardware(address, local=False)
        finally:
            ray.shutdown()
        return
    with session_folder() as folder:
        try:
            _start(config, needed_cpus, str(folder))
            yield connected_hardware("local", local=True)
        finally:
            ray.shutdown()


def _start(config: ClusterConfig, needed_cpus: float, folder: str) -> None:
    """Tries again once. Ray gives its own processes 30 s, too few on a machine that is busy for a moment, such as when
    a killed run is started again."""
    start = partial(
        ray.init,
        address="local",
        num_cpus=config.cpus or max(os.cpu_count() or 1, int(needed_cpus + 0.999)),
        include_dashboard=config.dashboard,
        dashboard_host="127.0.0.1",
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        object_store_memory=config.object_store_bytes,
        log_to_driver=config.actor_output,
        logging_level="ERROR",
    )
    for last in (False, True):
        try:
            with _groups_of_their_own():
                start()
            return
        except Exception as error:  # a port, memory, a time-out: Ray raises bare exceptions here
            ray.shutdown()
            if last:
                raise UserError(f"cluster: Ray could not be started on this machine: {first_line(error)}") from error


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Within, Ray's processes get process groups of their own. A signal to the driver's whole group, as ``timeout`` and
    shells send it, asks the run to save; it must not take away what it saves with. Ray has no option for it."""
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def _join(address: str, config: ClusterConfig) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if host and port.isdigit():
            # Ray itself tries for minutes where nobody listens.
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        ray.init(address=address, log_to_driver=config.actor_output, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise UserError(f"cluster.address {address}: no Ray cluster could be joined there: {reason}") from error
