"""A free port can be taken."""

from __future__ import annotations

import socket

from contracts.ports import free_port


def test_a_free_port_can_be_listened_on():
    port = free_port("127.0.0.1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            pass


def test_a_port_that_is_taken_is_not_given():
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        assert server.getsockname()[1] not in {free_port() for _ in range(20)}
