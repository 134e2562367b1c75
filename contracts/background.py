"""Work in a thread of its own, beside what the process is there for; and making its files durable."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


def in_background(work: Callable[[], Result], name: str) -> Future[Result]:
    """Begin ``work``; the answer has its result or its error. A thread that is still at it does not keep its process
    from ending, as one of an executor would."""
    answer: Future[Result] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return answer


def write_whole(path: Path, text: str) -> None:
    """Put ``text`` in place of what a file has. Whoever reads meanwhile, is killed or finds the disk full has one or
    the other.

    Raises:
        OSError: it can't be written.
    """
    aside = path.with_name(f"{path.name}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        flush(aside)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Force a file or folder to the disk: a rename may otherwise outlive the bytes that it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
