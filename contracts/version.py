"""The program's version, and the one line about a file that another format was written in."""

from __future__ import annotations

from contracts.errors import UserError

VERSION = "0.1.0"
"""Stands in every file that a later run reads back; pyproject.toml takes it from here."""


def validate_format(where: str, found: object, known: int | str) -> None:
    """Check a file's format number against the one that this program reads.

    Args:
        where: the file, and the option that names it if there is one.
        found: the number in the file; None if it has none.

    Raises:
        UserError: they differ.
    """
    if found != known:
        has = "has no format number" if found is None else f"has format {found}"
        raise UserError(f"{where}: {has}, so another version wrote it; version {VERSION} reads format {known} alone")
