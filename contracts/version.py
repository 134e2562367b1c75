"""The program's own version, as files on disk name it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """The installed version of the package; ``unknown`` where the source tree runs without having been installed."""
    try:
        return version("sapo")
    except PackageNotFoundError:
        return "unknown"
