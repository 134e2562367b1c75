"""The real demo's rows are answers of a readable length, each about something of its own, the same every time."""

from __future__ import annotations

import json

from demo.docstrings import CHARACTERS, conversations, write_rows


def test_rows_are_questions_with_answers_of_a_bounded_length():
    rows = conversations(0)
    assert len(rows) > 300
    for question, answer in rows:
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert question["content"].startswith("What does Python's ") and question["content"].endswith(" do?")
        assert len(answer["content"]) in CHARACTERS


def test_no_two_rows_have_the_same_answer_or_question():
    rows = conversations(0)
    for side in (0, 1):
        assert len({row[side]["content"] for row in rows}) == len(rows)


def test_the_order_depends_on_the_seed_alone():
    assert conversations(0) == conversations(0)
    assert conversations(1) != conversations(0)


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "real" / "train.jsonl"
    assert write_rows(path, 0) == len(conversations(0))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["messages"] for line in lines] == conversations(0)
