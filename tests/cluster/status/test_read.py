"""A run that has ended is read from its folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.status import read
from cluster.status.read import board_of_folder, only_run
from contracts.errors import UserError
from support.run_folders import event, make_run


def test_a_folder_gives_the_last_step_its_speed_and_how_it_ended(tmp_path: Path):
    board = board_of_folder(make_run(tmp_path / "mine", steps=30))
    assert (board.run, board.method, board.step, board.doing) == ("mine", "sapo", 30, "complete")
    assert (board.step_s, board.tokens_per_s) == (0.5, 1400.0)
    assert board.learner_idle["pairs"] == pytest.approx(0.1)
    assert board.metrics["loss"] == pytest.approx(1 / 30)
    assert [line.message for line in board.events] == ["rows.jsonl: 20 of 21 rows used", "actor-0 died"]
    assert board.sample is not None and board.sample["step"] == 20


def test_a_run_that_was_killed_in_its_start_is_not_said_to_do_a_phase(tmp_path: Path):
    events = [event(0, "started", step=0), event(3, "checkpoint"), event(9, "phase")]
    assert board_of_folder(make_run(tmp_path / "mine", events=events)).doing == "checkpoint"


def test_no_folder_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="no such run folder"):
        board_of_folder(tmp_path / "nothing")


def test_a_run_without_a_mailbox_for_a_moment_has_not_ended(monkeypatch: pytest.MonkeyPatch):
    now, boards = 0.0, iter(["first", "second"])
    found = iter([True, False, False, True, *[False] * 30])

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def find(run: str) -> str:
        if not next(found):
            raise UserError("no such run is going on")
        return "mailbox"

    def board(mailbox: str, run: str) -> str:
        shown = next(boards, "")
        if not shown:
            raise UserError("it has ended")
        # The mailbox that gave the first died.
        monkeypatch.setattr(read, "live_board", gone if shown == "first" else board)
        return shown

    def gone(mailbox: str, run: str) -> str:
        monkeypatch.setattr(read, "live_board", board)
        raise UserError("it has ended")

    monkeypatch.setattr(read, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    monkeypatch.setattr(read, "find_control", find)
    monkeypatch.setattr(read, "live_board", board)
    assert list(read.boards("mine")) == ["first", "second"]
    assert 20 <= now < 30


def test_which_run_of_a_cluster_is_said_where_it_is_not_clear(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read, "going_on", lambda: ["a"])
    assert only_run("here:1") == "a"
    monkeypatch.setattr(read, "going_on", lambda: ["a", "b"])
    with pytest.raises(UserError, match="several are going on at here:1: a, b"):
        only_run("here:1")
    monkeypatch.setattr(read, "going_on", list)
    with pytest.raises(UserError, match="no run is going on there"):
        only_run("here:1")
