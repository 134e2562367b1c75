"""``sapo judge`` prints a win rate and says what it left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.command_line import Sapo
from support.judge_server import judge_server


def generations(path: Path, outputs: list[str]) -> Path:
    path.write_text(json.dumps([{"instruction": f"i{n}", "output": o} for n, o in enumerate(outputs)]))
    return path


def test_a_win_rate_is_printed_as_a_table_or_json_and_asked_for_once(
    sapo: Sapo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    ours, theirs = (
        generations(tmp_path / "a.json", ["x", "same", "u"]),
        generations(tmp_path / "b.json", ["yy", "same"]),
    )

    def say(a: str, b: str) -> str:
        return "[[A]]" if a == "x" or b == "yy" else "[[B]]" if b == "x" else "[[A]]"

    with judge_server(say) as server:
        arguments = ("judge", ours, theirs, "--judge-url", server.url, "--judge-model", "j")
        arguments = (*arguments, "--judgements", tmp_path / "j.jsonl")
        assert sapo(*arguments, "--dry-run").out.startswith("2 prompts in both orders: up to 4 requests to j at ")
        assert not server.requests
        found = json.loads(sapo(*arguments, "--json").out)
        assert found["win_rate"]["mean"] == 0.75
        assert (found["wins"], found["ties"], found["losses"], found["unpaired"]) == (1, 1, 0, 1)
        assert len(server.requests) == 3, "equal responses are one question in both orders"
        assert set(server.keys) == {"Bearer secret"}
        out = sapo(*arguments).out
        assert len(server.requests) == 3
    assert "0.750 ± 0.250" in out
    assert "1 responses left out" in out
    assert "secret" not in (tmp_path / "j.jsonl").read_text()


def test_what_cannot_be_judged_is_one_line(sapo: Sapo, tmp_path: Path) -> None:
    file = generations(tmp_path / "a.json", ["x"])

    def said(*arguments: object) -> str:
        return sapo("judge", file, *arguments, "--judge-url", "http://localhost:1/v1", "--judge-model", "j").rejection

    assert said(tmp_path / "none.json").startswith(f"generations {tmp_path / 'none.json'}: can't be read")
    assert said(file, "--judge-request", "[1]").startswith("--judge-request: a JSON object is expected")
    assert said(file, "--judge-request", "{").startswith("--judge-request: not JSON")
