"""Spans of asynchronous actors are told to Ray as Ray tells its own."""

from __future__ import annotations

import inspect
import json

import pytest

from contracts.spans import Span, span, task_events


def test_spans_of_a_task_are_one_record_under_its_id():
    over = [
        Span("0a" * 24, "write", 10, 30, {"index": "7"}),
        Span("0b" * 24, "write", 20, 25, {}),
        Span("0a" * 24, "plan", 30, 40, {}),
    ]
    first, second = task_events(over, b"\x01\0\0\0", "0c" * 28, "10.0.0.2")
    assert (first.task_id.hex(), first.attempt_number, first.job_id) == ("0a" * 24, 0, b"\x01\0\0\0")
    assert [(e.event_name, e.start_time, e.end_time) for e in first.profile_events.events] == [
        ("write", 10, 30),
        ("plan", 30, 40),
    ]
    assert json.loads(first.profile_events.events[0].extra_data) == {"index": "7"}
    assert first.profile_events.component_type == "worker"  # others are not drawn
    assert first.profile_events.component_id.hex() == "0c" * 28
    assert first.profile_events.node_ip_address == "10.0.0.2"
    assert second.task_id.hex() == "0b" * 24 and len(second.profile_events.events) == 1


def test_outside_of_ray_a_span_is_nothing():
    with span("draw"):
        pass


@pytest.mark.contract
def test_ray_leaves_out_spans_of_tasks_that_it_does_not_know_and_takes_those_that_are_sent_to_it():
    from ray._private.state import GlobalState
    from ray._raylet import CoreWorker  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import TaskInfoGcsServiceStub
    from ray.dashboard.modules.task_events.task_event_query import _passes_filters

    assert "current_actor_is_asyncio" in dir(CoreWorker)
    assert "AddTaskEventData" in inspect.getsource(TaskInfoGcsServiceStub.__init__)
    assert 'HasField("task_info")' in inspect.getsource(_passes_filters)
    assert '["worker", "driver"]' in inspect.getsource(GlobalState.chrome_tracing_dump)
