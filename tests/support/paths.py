"""Where the repository is, for tests that run its programs or read its files."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
