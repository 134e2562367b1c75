"""``sapo judge`` prints a win rate and says what it left out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from support.chat_model import save_chat_model
from support.command_line import Said, Sapo
from support.judge_server import judge_server
from support.vllm_server import vllm_server

VERDICTS = {"structured_outputs": {"choice": ["[[A]]", "[[B]]", "[[C]]"]}, "max_tokens": 16}
"""vLLM's way to hold an answer to a choice: a random model would not name one."""


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
        judge = ("--judge-url", server.url, "--judge-model", "j")
        arguments = ("judge", ours, theirs, *judge, "--judgements", tmp_path / "j.jsonl")
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


@pytest.mark.slow
def test_a_model_against_itself_is_half_and_against_another_mirrored(sapo: Sapo, tmp_path: Path) -> None:
    draw = random.Random(0)

    def responses(name: str, count: int = 6) -> Path:
        rows = [{"instruction": f"i{i}", "output": "".join(draw.choices("abc ", k=40))} for i in range(count)]
        if name == "long":
            rows[0]["output"] = "x" * 9000
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        return tmp_path / f"{name}.json"

    one, other, long = responses("one"), responses("other"), responses("long")
    model = save_chat_model(tmp_path / "model")
    with vllm_server(model, tmp_path / "server.log", name="tiny", max_length=2048) as url:

        def judged(ours: Path, theirs: Path, **request: Any) -> Said:
            arguments = ("--judge-url", url, "--judge-model", "tiny", "--judgements", tmp_path / "j.jsonl")
            return sapo("judge", ours, theirs, *arguments, "--judge-request", json.dumps(VERDICTS | request), "--json")

        itself = json.loads(judged(one, one).out.splitlines()[-1])
        assert (itself["win_rate"]["mean"], itself["prompts"], itself["left_out"]) == (0.5, 6, 0)
        forth, back = (
            json.loads(judged(one, other).out.splitlines()[-1]),
            json.loads(judged(other, one).out.splitlines()[-1]),
        )
        for figure in ("win_rate", "length_controlled"):
            assert forth[figure]["mean"] == pytest.approx(1 - back[figure]["mean"], abs=1e-6)
        assert (forth["wins"], forth["losses"]) == (back["losses"], back["wins"])
        kept = (tmp_path / "j.jsonl").read_text().splitlines()
        assert len(kept) == 6 + 12, "the same questions, asked the other way round, are not asked again"
        assert json.loads(judged(long, one).out.splitlines()[-1])["left_out"] == 1, "longer than the judge can read"
        said = sapo("judge", one, other, "--judge-url", url, "--judge-model", "none", "--judgements", tmp_path / "k")
    assert said.rejection.startswith(f"--judge-url {url}: Error code: 404")
