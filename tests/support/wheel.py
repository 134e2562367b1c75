"""The wheel, built from what git knows, and installed into an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from support.paths import REPOSITORY


@dataclass(frozen=True)
class Installed:
    """An environment with the program in it. Its dependencies are borrowed from the environment of the tests."""

    wheel: Path
    folder: Path

    @property
    def site(self) -> Path:
        """Where the wheel was unpacked."""
        return next(self.folder.glob("lib/python*/site-packages"))

    def run(self, *command: object, cwd: Path, limit_s: float = 600, **environment: str) -> subprocess.CompletedProcess:
        """A program of the environment, as its user calls it: nothing of the checkout is on the path."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            list(map(str, command)),
            cwd=cwd,
            env=kept | {"PATH": path} | environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )


def build_wheel(target: Path) -> Path:
    """``python -m build`` of the files that git knows or would take in: what lies about does not get in."""
    source = target / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():  # not one that was deleted and not committed
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    shutil.rmtree(source)
    return next(target.glob("*.whl"))


def install(wheel: Path, folder: Path) -> Installed:
    """Into a fresh environment, without dependencies: those take 4 GB."""
    venv.create(folder, with_pip=False, symlinks=True)
    made = Installed(wheel, folder)
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True)
    # Not the .pth files of that folder, among them the one of this checkout.
    (made.site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made
