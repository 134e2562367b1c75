"""Takes the pictures of docs/howto/monitoring.md: Ray's dashboard, ``sapo status``, the report of a run that goes on.

    python docs/screenshots.py [KEY=VALUE ...]

It trains configs/demo.yaml with these overrides (``make demo`` has left its model and data) and writes into
docs/pictures. It needs Chromium.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a browser that opens the dashboard has no token
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from PIL import Image  # noqa: E402
from rich.console import Console  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PICTURES = HERE / "pictures"
STEPS_FIRST = 60
"""Steps after which the run is looked at: curves have a shape, the bottleneck report has been made."""
START_S = 600.0
COLORS = 256
"""Of a picture, those of thin curves among them."""
STATUS_COLUMNS = 124


def main() -> None:
    if CHROMIUM is None:
        sys.exit("screenshots: no chromium in the PATH")
    with tempfile.TemporaryDirectory(prefix="screenshots-") as folder:
        command = [sys.executable, "-m", "cluster", "train", "configs/demo.yaml", "name=demo", f"output_dir={folder}"]
        changes = ["cluster.dashboard=true", "logging.verdict_every=20", "learner.steps=5000", *sys.argv[1:]]
        run = subprocess.Popen([*command, *changes], cwd=HERE.parent)
        try:
            _await_steps(run, Path(folder) / "demo" / "metrics.jsonl")
            _look(Path(folder) / "demo")
        finally:
            run.terminate()
            run.wait()


def _await_steps(run: subprocess.Popen[bytes], metrics: Path) -> None:
    limit = time.monotonic() + START_S
    while not (metrics.exists() and metrics.read_text().count("\n") >= STEPS_FIRST):
        if run.poll() is not None:
            sys.exit(f"screenshots: the run ended with status {run.returncode}")
        if time.monotonic() > limit:
            sys.exit(f"screenshots: no {STEPS_FIRST} steps within {START_S:g} s")
        time.sleep(1)


def _look(run: Path) -> None:
    from ray._private.worker import get_dashboard_url

    from cluster.config.sections import ClusterConfig
    from cluster.workers.find_run import find_run
    from cluster.workers.ray_session import ray_session

    found = find_run(str(run), None)
    with ray_session(ClusterConfig(address=found.address), 0, found.auth):
        _status(run.name, PICTURES / "status.svg")
        page(f"http://{get_dashboard_url()}/#/actors", PICTURES / "ray-dashboard.png", width=1500, height=900)
    subprocess.run([sys.executable, "-m", "cluster", "report", str(run)], check=True, cwd=HERE.parent)
    report = (run / "report.html").absolute().as_uri()
    page(report, PICTURES / "report.png", width=1200, height=1500)
    frame = run / "frame.html"
    # Chromium has no window of less than 500 pixels.
    frame.write_text(f'<body style="margin:0"><iframe src="{report}" width=390 height=900 style="border:0"></iframe>')
    page(frame.absolute().as_uri(), PICTURES / "report-phone.png", width=390, height=900)


def _status(name: str, out: Path) -> None:
    """The table of ``sapo status``, drawn by the same code; without the fonts that rich would load from a network."""
    from cluster.status.read import live_board
    from cluster.status.table import render
    from cluster.workers.control import find_control

    console = Console(record=True, width=STATUS_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(render(live_board(find_control(name), name), live=True))
    drawn = console.export_svg(title="sapo status")
    out.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL))
    print(f"wrote {out.relative_to(HERE.parent)}")


def page(address: str, out: Path, *, width: int, height: int) -> None:
    """A page as it stands after ten seconds of its own time, in few colours."""
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        subprocess.run(
            [
                str(CHROMIUM),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                "--allow-file-access-from-files",
                f"--window-size={max(width, 500)},{height}",
                "--virtual-time-budget=10000",
                f"--screenshot={out}",
                address,
            ],
            check=True,
            capture_output=True,
            timeout=300,
        )
    taken = Image.open(out).convert("RGB").crop((0, 0, width, height))
    taken.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"wrote {out.relative_to(HERE.parent)}, {out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
