"""What a run's processes are doing, to its log, before one that stands still is given up."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from cluster.workers.ray_calls import Call, Calls, WorkerFailure
from contracts.errors import UserError

STACKS_S = 10.0
"""Longest wait for the answers, all together."""


def log_stacks(asked: Mapping[str, Call], calls: Calls, log: logging.Logger, why: str) -> list[str]:
    """Write what comes back to the log at level debug, which run.log has; returns who gives no sign of life.

    Args:
        asked: calls of ``stacks`` by the names of their processes.
        why: follows each name.
    """
    deadline = time.monotonic() + STACKS_S
    silent = []
    for name, call in asked.items():
        answered = calls.first_done([call], 0)
        while not answered and (left_s := deadline - time.monotonic()) > 0:
            answered = calls.first_done([call], left_s)  # may come back early, for what else happened
        if not answered:
            silent.append(name)
        log.debug("%s %s:\n%s", name, why, _answer(call, calls) if answered else "does not answer")
    return silent


def _answer(call: Call, calls: Calls) -> str:
    try:
        return str(calls.answer(call))
    except (UserError, WorkerFailure) as failure:
        return str(failure)
