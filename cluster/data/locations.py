"""Tells local paths from names on the hub."""

from __future__ import annotations

from pathlib import Path

from contracts.errors import UserError


def only_local(path: str) -> bool:
    """Whether a path can't be a hub name, which is ``name`` or ``owner/name``."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def reject_absent(path: str, key: str) -> None:
    """Reject what can only be a local folder and is not there, before anything asks the hub for it.

    Args:
        key: the option that names it, for the message.

    Raises:
        UserError: nothing is at ``path``.
    """
    if only_local(path) and not Path(path).exists():
        raise UserError(f"{key} {path}: no such folder")
