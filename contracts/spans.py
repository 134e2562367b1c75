"""Spans of Ray's timeline: what a process did from when to when, where profiling is switched on."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.core.generated.gcs_pb2 import TaskEvents

logger = logging.getLogger(__name__)

SEND_S = 1.0
"""Between two deliveries of an asynchronous actor's spans; Ray's own processes report as often."""


@dataclass(frozen=True)
class Span:
    """One that is over."""

    task: str
    """Ray's id of the task in which it was, in hex."""
    name: str
    start_ns: int
    """Since the epoch; so is ``end_ns``."""
    end_ns: int
    details: dict[str, str]


def span(name: str, **details: str) -> AbstractContextManager[None]:
    """A stretch of work that ``ray timeline`` shows; nothing unless RAY_PROFILING is set where Ray was started, or
    outside of Ray.

    Args:
        details: shown with the span.
    """
    from ray import is_initialized
    from ray._private.profiling import PROFILING_ENABLED, profile
    from ray._private.worker import global_worker

    if not (PROFILING_ENABLED and is_initialized()):
        return nullcontext()
    if global_worker.core_worker.current_actor_is_asyncio():
        return _noted(name, details)
    timed: AbstractContextManager[None] = profile(name, details)
    return timed


@contextmanager
def _noted(name: str, details: dict[str, str]) -> Iterator[None]:
    """A span of an asynchronous actor.

    Ray's ``profile`` books a span under the task of its thread. The thread of an event loop has none, and
    ``ray timeline`` leaves out spans of tasks that Ray knows nothing about. So these go to Ray under the task of the
    coroutine.
    """
    import ray

    task = ray.get_runtime_context().get_task_id()
    start_ns = time.time_ns()
    try:
        yield
    finally:
        if task:
            _delivery().add(Span(task, name, start_ns, time.time_ns(), details))


class Delivery(threading.Thread):
    """Sends a process's spans to where Ray keeps those of all others, all of a second at once."""

    def __init__(self) -> None:
        super().__init__(name="spans", daemon=True)
        self._lock = threading.Lock()
        self._over: list[Span] = []
        self._lost = 0

    def add(self, over: Span) -> None:
        with self._lock:
            self._over.append(over)

    def run(self) -> None:
        import grpc
        import ray
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

        context = ray.get_runtime_context()
        worker, node = context.get_worker_id(), ray.util.get_node_ip_address()
        job = bytes.fromhex(context.get_job_id())
        # With the cluster's token and certificates, where it has them.
        service = gcs_service_pb2_grpc.TaskInfoGcsServiceStub(init_grpc_channel(context.gcs_address))
        while True:
            time.sleep(SEND_S)
            with self._lock:
                over, self._over = self._over, []
            if not over:
                continue
            data = gcs_pb2.TaskEventData(events_by_task=task_events(over, job, worker, node), job_id=job)
            try:
                service.AddTaskEventData(gcs_service_pb2.AddTaskEventDataRequest(data=data), timeout=10)
            except grpc.RpcError as error:
                if not self._lost:
                    logger.warning("spans do not reach Ray's timeline: %s", error)
                self._lost += len(over)


def task_events(over: list[Span], job: bytes, worker: str, node: str) -> list[TaskEvents]:
    """As Ray's processes report spans: one record for each task.

    Args:
        worker: Ray's id of the process, in hex.
        node: its address.
    """
    from ray.core.generated.gcs_pb2 import TaskEvents
    from ray.core.generated.profile_events_pb2 import ProfileEventEntry, ProfileEvents

    by_task: dict[str, list[ProfileEventEntry]] = {}
    for one in over:
        by_task.setdefault(one.task, []).append(
            ProfileEventEntry(
                event_name=one.name, start_time=one.start_ns, end_time=one.end_ns, extra_data=json.dumps(one.details)
            )
        )
    return [
        TaskEvents(
            task_id=bytes.fromhex(task),
            attempt_number=0,
            job_id=job,
            profile_events=ProfileEvents(
                component_type="worker", component_id=bytes.fromhex(worker), node_ip_address=node, events=entries
            ),
        )
        for task, entries in by_task.items()
    ]


@cache
def _delivery() -> Delivery:
    """The process's own; it ends with the process."""
    delivery = Delivery()
    delivery.start()
    return delivery
