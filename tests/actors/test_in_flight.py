"""Idle time is counted from the end of the first request on, while none is in flight."""

from __future__ import annotations

from unittest import mock

import pytest

from actors import in_flight
from actors.in_flight import InFlight


@pytest.fixture
def clock():
    with mock.patch.object(in_flight.time, "monotonic") as now:
        now.return_value = 100.0
        yield now


def test_the_time_before_the_first_request_is_not_idle(clock):
    busy = InFlight()
    clock.return_value = 130.0
    assert (busy.idle_s, busy.count) == (0.0, 0)


def test_idle_time_runs_only_while_nothing_is_in_flight(clock):
    busy = InFlight()
    with busy, busy:
        assert busy.count == 2
        clock.return_value = 110.0
    assert (busy.idle_s, busy.count) == (0.0, 0)
    clock.return_value = 113.0
    assert busy.idle_s == 3.0
    with busy:
        clock.return_value = 120.0
        assert busy.idle_s == 3.0
    clock.return_value = 121.0
    assert busy.idle_s == 4.0
