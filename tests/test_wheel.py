"""The wheel holds all that a run needs, and works in an empty folder, away from the checkout."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from contracts.version import VERSION
from support.paths import REPOSITORY
from support.wheel import Installed

SHIPPED = ("actors", "buffer", "cluster", "configs", "contracts", "demo", "learner")
ENDINGS = {".py", ".yaml", ".jinja", ".css", ".js"}


@pytest.mark.slow
def test_the_wheel_has_every_file_of_its_packages_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {
        str(path.relative_to(REPOSITORY))
        for folder in SHIPPED
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in ENDINGS
    }
    assert held == files
    assert installed.wheel.name == f"sapo-{VERSION}-py3-none-any.whl"


@pytest.mark.slow
def test_the_installed_command_works_from_an_empty_folder(installed: Installed, tmp_path: Path) -> None:
    where = "import cluster, demo, sys; print(cluster.__file__, demo.__file__)"
    done = installed.run("python", "-c", where, cwd=tmp_path)
    assert all(Path(name).is_relative_to(installed.site) for name in done.stdout.split()), done
    done = installed.run("sapo", "recipes", "offline-orpo", "--to", "mine", cwd=tmp_path)
    assert done.stdout == "wrote mine/offline-orpo.yaml\nwrote mine/templates/zephyr.jinja\n", done.stderr
    done = installed.run("sapo", "config", "mine/offline-orpo.yaml", cwd=tmp_path)
    assert "chat_template: mine/templates/zephyr.jinja" in done.stdout, done.stderr
    done = installed.run("sapo", "train", "mine/none.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "sapo: mine/none.yaml: no such config file\n")
