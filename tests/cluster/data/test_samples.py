"""Prompt and responses are found in the columns of every supported shape of row."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.dataset_rows import conversation, jsonl, rejection, table_of, texts


def test_a_column_of_conversations_can_be_chosen(chat: str, tmp_path: Path) -> None:
    row = {"messages": conversation("x", "wrong"), "chosen": conversation("q", "right")}
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [row]), chat, messages_column="chosen")
    assert texts(table, chat)[0][1] == "right</s>"


def test_prompt_and_completion_text_is_taken_as_it_is(plain: str, chat: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "2 + 2 =", "completion": " 4"}])
    for model in (plain, chat):
        table, _ = table_of(path, model)
        assert texts(table, model) == [("<s>2 + 2 =", " 4</s>")]
    renamed = jsonl(tmp_path / "r.jsonl", [{"q": "2 + 2 =", "a": " 4"}])
    assert texts(table_of(renamed, plain, prompt_column="q", completion_column="a")[0], plain)[0][1] == " 4</s>"


def test_prompt_and_completion_messages_are_rendered(chat: str, tmp_path: Path) -> None:
    turns = conversation("q", "a")
    rows = [{"prompt": turns[:1], "completion": turns[1:]}, {"prompt": turns[:1], "completion": "a"}]
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", rows), chat)
    assert texts(table, chat) == [("<s><|user|>q</s><|assistant|>", "a</s>")] * 2


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": conversation("q", "good"), "rejected": conversation("q", "bad")},
        {"prompt": "q", "chosen": conversation("q", "good"), "rejected": conversation("q", "bad")},
        {"prompt": "q", "chosen": conversation("", "good")[1:], "rejected": conversation("", "bad")[1:]},
        {"prompt": conversation("q"), "chosen": "good", "rejected": "bad"},
    ],
)
def test_given_pairs_share_their_prompt(chat: str, tmp_path: Path, row: dict[str, object]) -> None:
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [row]), chat, "offline")
    assert texts(table, chat) == [("<s><|user|>q</s><|assistant|>", "good</s>", "bad</s>")]


def test_given_pairs_as_text(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "q:", "chosen": " good", "rejected": " bad"}])
    assert texts(table_of(path, plain, "offline")[0], plain) == [("<s>q:", " good</s>", " bad</s>")]


def test_pairs_on_different_prompts_are_dropped_and_counted(chat: str, tmp_path: Path) -> None:
    good = {"chosen": conversation("q", "a"), "rejected": conversation("q", "b")}
    odd = {"chosen": conversation("q", "a"), "rejected": conversation("p", "b")}
    _, report = table_of(jsonl(tmp_path / "d.jsonl", [good, odd, odd]), chat, "offline")
    assert report.dropped == {"whose chosen and rejected answer different prompts": 2}
    assert rejection(jsonl(tmp_path / "e.jsonl", [{"chosen": "a"}]), chat, "offline").endswith(
        "no column rejected; the columns are chosen; name them in data.chosen_column and data.rejected_column"
    )
