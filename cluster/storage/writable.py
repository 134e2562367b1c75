"""Whether a folder can be made and written to, found out by trying: permissions tell root nothing, and file systems of
the kernel accept nobody's files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from contracts.errors import UserError


def validate_writable(folder: Path, option: str, remedy: str = "") -> None:
    """Try it with an empty folder that is deleted at once, in the deepest folder of ``folder`` that is there.

    Args:
        option: what names the folder, for the message.
        remedy: what else to set, for the message.

    Raises:
        UserError: nothing can be written there.
    """
    folder = folder.absolute()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if not place.is_dir():
        raise UserError(f"{option}: {place} is no folder{remedy}")
    try:
        with tempfile.TemporaryDirectory(prefix=".sapo-", dir=place):
            pass
    except OSError as error:
        raise UserError(f"{option}: nothing can be written in {place}: {error.strerror}{remedy}") from error
