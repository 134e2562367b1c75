"""What a run says is on the terminal and stays in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.reports.run_log import RunLog


def test_both_ends_get_a_line_and_the_file_keeps_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = RunLog("mine")
    log.keep(tmp_path)
    log.logger.info("actor-0 failed [bold]\u27e6x\u27e7")
    try:
        raise OSError("the cause")
    except OSError as error:
        log.logger.debug("attempt failed", exc_info=error)
    log.close()
    log.logger.info("after the end")
    assert capsys.readouterr().err.splitlines() == ["mine: actor-0 failed [bold]\u27e6x\u27e7"]
    kept = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "INFO actor-0 failed [bold]" in kept and "Traceback" in kept and "the cause" in kept
    assert "after the end" not in kept


def test_what_is_said_before_there_is_a_folder_is_in_it_too(tmp_path: Path):
    log = RunLog("mine")
    log.logger.debug("reading model and data: 0.2 s", extra={"event": "phase", "phase": "reading", "seconds": 0.2})
    log.keep(tmp_path)
    log.logger.info("later")
    log.close()
    assert [line.split(" ", 2)[2] for line in (tmp_path / "run.log").read_text().splitlines()] == [
        "DEBUG reading model and data: 0.2 s",
        "INFO later",
    ]
    assert '"event": "phase"' in (tmp_path / "events.jsonl").read_text()
