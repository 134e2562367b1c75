"""MT-Bench's files are read and written as FastChat has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.evaluation.mt_bench import read_questions, write_answers
from contracts.errors import UserError
from support.prompts import prompts_file

WRITING = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}
MATH = {"question_id": 111, "category": "math", "turns": ["Add.", "Why?"], "reference": ["7", ""]}


def test_questions_have_two_turns_and_the_temperature_of_their_category(tmp_path: Path) -> None:
    writing, math, other = read_questions(prompts_file(tmp_path, WRITING, MATH, {"question_id": "x", "turns": ["Hi"]}))
    assert (writing.question_id, math.question_id, other.question_id) == (81, 111, "x")
    assert (writing.asked.temperature, math.asked.temperature, other.asked.temperature) == (0.7, 0.0, 0.7)
    assert writing.asked.messages == [{"role": "user", "content": "Write."}]
    assert writing.asked.follow_ups == ("Again.",)


def test_the_next_turn_follows_what_was_said() -> None:
    from cluster.evaluation.questions import Question

    question = Question("f:1", "a", [{"role": "user", "content": "a"}], follow_ups=("b", "c"))
    said = question.after(["x"])
    assert [(m["role"], m["content"]) for m in said.messages or []] == [
        ("user", "a"),
        ("assistant", "x"),
        ("user", "b"),
    ]
    assert said.follow_ups == ("c",)
    assert question.after([]) == question
    assert [m["content"] for m in question.whole().messages or []] == ["a", "", "b", "", "c"]


def test_answers_are_lines_with_fastchats_keys(tmp_path: Path) -> None:
    questions = read_questions(prompts_file(tmp_path, WRITING, MATH))
    texts = [["Ja.", "我"], ["7", ""]]
    write_answers(tmp_path / "m.jsonl", "mine", questions, texts, clock=lambda: 1.5, new_id=lambda: "id")
    assert [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [
        {
            "question_id": number,
            "answer_id": "id",
            "model_id": "mine",
            "choices": [{"index": 0, "turns": turns}],
            "tstamp": 1.5,
        }
        for number, turns in zip((81, 111), texts, strict=True)
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question_id": 1, "turns": "one"}, ":1: turns is expected, a list of texts"),
        ({"question_id": 1, "turns": []}, ":1: turns is expected"),
        ({"turns": ["one"]}, ":1: question_id is expected; found the keys turns"),
    ],
)
def test_what_is_no_question_is_named(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_questions(prompts_file(tmp_path, row))
