"""The program's version as files on disk name it."""

from __future__ import annotations

from importlib import metadata

import pytest

from contracts.version import program_version


def test_the_installed_version_or_unknown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("contracts.version.version", lambda name: f"1.2 of {name}")
    assert program_version() == "1.2 of sapo"

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("contracts.version.version", missing)
    assert program_version() == "unknown"
