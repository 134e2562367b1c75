"""Whether what a run talks to answers."""

from __future__ import annotations

import socket

import pytest

from cluster.doctor import network
from cluster.doctor.finding import Level
from cluster.doctor.network import hub_finding, port_finding, ray_finding


def test_a_cluster_that_answers_is_well_and_one_that_does_not_is_wrong() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert ray_finding(address).level is Level.OK
        assert ray_finding(f"ray://{address}").level is Level.OK
    assert ray_finding(address).level is Level.WRONG


def test_no_address_starts_ray_here_and_auto_is_ray_s_own_affair() -> None:
    assert ray_finding(None).level is ray_finding("auto").level is Level.OK


def test_a_port_of_this_machine_answers() -> None:
    assert port_finding().level is Level.OK


def test_without_the_hub_local_folders_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_answers", lambda host, port: False)
    assert hub_finding({}).level is Level.WARNING
    assert hub_finding({"HF_HUB_OFFLINE": "1"}).level is Level.OK
