"""Opens pages of this machine in headless Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
"""None where there is none."""


def dumped(page: Path, *options: str, budget_ms: int, timeout_s: float) -> str:
    """The page as it stands after ``budget_ms`` of its own time; nothing may have been said to the console."""
    always = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        f"--user-data-dir={page.parent / 'profile'}",
        f"--virtual-time-budget={budget_ms}",
        "--enable-logging=stderr",
        "--dump-dom",
    ]
    ran = subprocess.run(
        [str(CHROMIUM), *always, *options, page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=timeout_s,
    )
    assert "CONSOLE" not in ran.stderr, ran.stderr
    return ran.stdout
