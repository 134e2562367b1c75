"""A judge is asked once for each question; what it said outlives a run that breaks off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.judging.judge import Comparison, Judge, Refusal
from cluster.judging.judgements import Judgements, key_of
from cluster.judging.verdict import Verdict
from contracts.errors import UserError
from support.judge_server import judge_server


def longer(a: str, b: str) -> str:
    return "[[C]]" if len(a) == len(b) else "[[A]]" if len(a) > len(b) else "[[B]]"


def ask(url: str, file: Path, *comparisons: Comparison, **request: Any) -> list[Verdict | Refusal]:
    judgements = Judgements(file)
    try:
        return Judge(url, "judge", None, judgements, request).compare(comparisons, concurrency=4)
    finally:
        judgements.close()


PAIRS = [Comparison("i", "long", "s"), Comparison("i", "s", "long"), Comparison("i", "same", "size")]


def test_each_question_is_asked_once_and_never_again(tmp_path: Path) -> None:
    with judge_server(longer) as server:
        expected = [Verdict.FIRST, Verdict.SECOND, Verdict.TIE]
        assert ask(server.url, tmp_path / "j", *PAIRS, *PAIRS) == expected * 2
        assert len(server.requests) == 3
        assert ask(server.url, tmp_path / "j", *PAIRS) == expected
        assert len(server.requests) == 3
        ask(server.url, tmp_path / "j", *PAIRS, max_tokens=7)
        assert len(server.requests) == 6, "other settings are another question"


@pytest.mark.parametrize("body", [b"<html>log in</html>", b'"text"', b""])
def test_a_server_of_another_api_is_one_line(tmp_path: Path, body: bytes) -> None:
    with (
        judge_server(lambda *_: body) as server,
        pytest.raises(UserError, match="the answer is not of OpenAI's chat API"),
    ):
        ask(server.url, tmp_path / "j", PAIRS[0])


def test_a_folder_holds_no_judgements(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; name a file"):
        Judgements(tmp_path)


def test_fields_of_the_request_are_the_users(tmp_path: Path) -> None:
    with judge_server(longer) as server:
        ask(server.url, tmp_path / "j", PAIRS[0], max_tokens=None, max_completion_tokens=9, top_k=1)
        (request,) = server.requests
    assert {k: v for k, v in request.items() if k != "messages"} == {
        "model": "judge",
        "temperature": 0.0,
        "max_completion_tokens": 9,
        "top_k": 1,
    }


def test_a_server_that_fails_now_and_then_is_asked_again(tmp_path: Path) -> None:
    answers: list[str | int] = [503, 500, "[[A]]"]
    with judge_server(lambda a, b: answers.pop(0)) as server:
        assert ask(server.url, tmp_path / "j", PAIRS[0]) == [Verdict.FIRST]
        assert len(server.requests) == 3


def test_what_was_said_before_a_failure_is_kept(tmp_path: Path) -> None:
    with judge_server(lambda a, b: 401 if a == "same" else longer(a, b)) as server:
        with pytest.raises(UserError) as caught:
            ask(server.url, tmp_path / "j", PAIRS[0], PAIRS[2])
        assert str(caught.value).startswith(f"--judge-url {server.url}: Error code: 401")
    with judge_server(longer) as server:
        assert ask(server.url, tmp_path / "j", PAIRS[0], PAIRS[2]) == [Verdict.FIRST, Verdict.TIE]
        assert len(server.requests) == 1


def test_a_rejected_request_is_no_verdict_and_all_rejected_is_an_error(tmp_path: Path) -> None:
    with judge_server(lambda a, b: 400 if "same" in a else longer(a, b)) as server:
        verdicts = ask(server.url, tmp_path / "j", PAIRS[0], PAIRS[2])
        assert verdicts[0] is Verdict.FIRST
        assert isinstance(verdicts[1], Refusal)
        assert "too long" in verdicts[1].reason
        with pytest.raises(UserError, match="every request is rejected"):
            ask(server.url, tmp_path / "other", PAIRS[2])


def test_a_torn_line_is_asked_for_again_and_a_foreign_file_rejected(tmp_path: Path) -> None:
    file = tmp_path / "j"
    first = Judgements(file)
    first.add(key_of({"a": 1}), Verdict.TIE, "[[C]]")
    first.close()
    file.write_text(file.read_text() + '{"key": "x", "verd')
    second = Judgements(file)
    assert second.get(key_of({"a": 1})) is Verdict.TIE
    second.add("x", Verdict.FIRST, "[[A]]")
    second.close()
    assert Judgements(file).get("x") is Verdict.FIRST
    file.write_text('{"key": "x", "verdict": "maybe"}\n')
    with pytest.raises(UserError, match="'maybe' is not a valid Verdict"):
        Judgements(file)
