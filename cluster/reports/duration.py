"""Lengths of time and speeds as a person says them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Such as ``2 h 05 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def speed(steps_per_s: float) -> str:
    """Such as ``2.5 steps/s``, or ``40.0 s/step`` of slow ones."""
    return f"{steps_per_s:.1f} steps/s" if steps_per_s >= 1 else f"{1 / steps_per_s:.1f} s/step"
