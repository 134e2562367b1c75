"""Responses are written as AlpacaEval and MT-Bench read them, each turn after what was said before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.evaluation.generation_files import dry_writing, write_responses
from cluster.evaluation.messages import Responses, ResponsesJob
from cluster.evaluation.plan import plan_responses
from cluster.evaluation.questions import Question
from contracts.errors import UserError
from support.prompts import USER, prompts_file


def ask(job: ResponsesJob) -> Responses:
    return Responses([[f"{q.text}@{q.temperature:g}", *q.follow_ups] for q in job.questions])


def written(out: Path, prompts: Path, kind: Any, **options: Any) -> Any:
    arguments = {"name": "mine", "temperature": None, "max_tokens": 8} | options
    write_responses(str(prompts.parent), prompts, out, kind, **arguments)
    text = out.read_text()
    return json.loads(text) if kind == "alpaca-eval" else [json.loads(line) for line in text.splitlines()]


def test_alpaca_evals_file_has_the_instruction_as_it_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.evaluation.generation_files.run_job", ask)
    prompts = prompts_file(tmp_path, {"instruction": "i", "dataset": "d", "output": "theirs"}, {"messages": [USER]})
    rows = written(tmp_path / "g.json", prompts, "alpaca-eval")
    assert rows[0] == {"dataset": "d", "instruction": "i", "output": "i@0", "generator": "mine"}
    assert rows[1]["instruction"] == USER["content"]
    assert written(tmp_path / "w.json", prompts, "alpaca-eval", temperature=0.5)[0]["output"] == "i@0.5"


def test_mt_benchs_file_has_two_turns_at_the_temperature_of_the_category(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.evaluation.generation_files.run_job", ask)
    prompts = prompts_file(tmp_path, {"question_id": 1, "category": "stem", "turns": ["a", "b"]})
    (row,) = written(tmp_path / "g.jsonl", prompts, "mt-bench")
    assert row["choices"] == [{"index": 0, "turns": ["a@0.1", "b"]}]
    assert row["model_id"] == "mine"


def test_what_cannot_be_written_is_said_before_an_engine_starts(tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path, {"instruction": "i"})
    with pytest.raises(UserError, match="name a file in a folder that exists"):
        written(tmp_path / "none" / "g.json", prompts, "alpaca-eval")
    (tmp_path / "there.json").write_text("mine")
    with pytest.raises(UserError, match=r"--out .*there\.json: is there already"):
        written(tmp_path / "there.json", prompts, "alpaca-eval")
    assert (tmp_path / "there.json").read_text() == "mine"


def test_a_plan_leaves_room_for_every_turn(demo_model: str, tmp_path: Path) -> None:
    """The demo's model has 64 positions."""
    said = [{"role": "user", "content": "write numbers"}]
    one, two = Question("f:1", "", said), Question("f:2", "", said, follow_ups=("write numbers",))
    plan = plan_responses(demo_model, [one, two], 1000)
    first, second = plan.most_tokens
    assert len(plan.prompts[0]) + first == 64
    whole = 64 - 2 * second
    assert whole >= 2 * len(plan.prompts[0]), "both prompts, and what closes the turn between them"
    assert second == (64 - whole) // 2
    assert plan.longest == 64
    assert "1 prompts, 2 responses of up to" in dry_writing(
        demo_model,
        prompts_file(tmp_path, {"question_id": 1, "turns": ["write", "write"]}),
        tmp_path / "o",
        "mt-bench",
        max_tokens=4,
    )


@pytest.mark.slow
def test_the_second_turn_is_answered_after_the_first(demo_model: str, tmp_path: Path) -> None:
    """The second turn's response is what the model says to the whole conversation."""
    turns = ["write 3 numbers with sum 12", "in any order"]
    bench = prompts_file(tmp_path, {"question_id": 1, "category": "math", "turns": turns})
    write_responses(demo_model, bench, tmp_path / "b.jsonl", "mt-bench", name="m", temperature=None, max_tokens=6)
    first, second = json.loads((tmp_path / "b.jsonl").read_text())["choices"][0]["turns"]
    conversation = [
        {"role": "user", "content": turns[0]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": turns[1]},
    ]
    prompts = prompts_file(tmp_path, {"instruction": turns[0]}, {"messages": conversation})
    rows = tmp_path / "a.json"
    write_responses(demo_model, prompts, rows, "alpaca-eval", name="m", temperature=None, max_tokens=6)
    assert [row["output"] for row in json.loads(rows.read_text())] == [first, second]
