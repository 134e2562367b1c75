"""Spans of Ray's timeline: what a process did from when to when, where profiling is switched on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


def span(name: str, **details: str) -> AbstractContextManager[None]:
    """A stretch of work that ``ray timeline`` shows; nothing unless RAY_PROFILING is set where Ray was started, or
    outside of Ray.

    Args:
        details: shown with the span.
    """
    from ray import is_initialized
    from ray._private.profiling import PROFILING_ENABLED, profile

    if not (PROFILING_ENABLED and is_initialized()):
        return nullcontext()
    timed: AbstractContextManager[None] = profile(name, details)
    return timed
