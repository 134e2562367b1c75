"""What a process is doing, for the log of a run that stands still."""

from __future__ import annotations

import sys
import threading
import traceback


def stacks() -> str:
    """Every thread of this process with the calls that it is in, innermost last."""
    frames = sys._current_frames()
    return "\n".join(
        f"thread {thread.name}\n{''.join(traceback.format_stack(frames[thread.ident]))}"
        for thread in threading.enumerate()
        if thread.ident in frames
    )
