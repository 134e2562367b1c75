"""A conversation becomes prompt and response as its chat template writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.dataset_rows import EOS, TEMPLATE, conversation, jsonl, rejection, table_of, texts, with_template
from support.paths import REPOSITORY

STRICT_TEMPLATE = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + TEMPLATE


def test_the_last_assistant_turn_is_the_response_and_what_follows_it_is_dropped(chat: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("a", "b", "c", "d", "e")}])
    table, _ = table_of(path, chat)
    assert texts(table, chat) == [("<s><|user|>a</s><|assistant|>b</s><|user|>c</s><|assistant|>", "d</s>")]


def test_rows_that_cannot_be_used_are_counted_by_reason(plain: str, tmp_path: Path) -> None:
    strict = with_template(plain, STRICT_TEMPLATE, tmp_path / "strict")
    rows = [
        {"messages": conversation("q", "a")},
        {"messages": conversation("q")},
        {"messages": conversation("q", "  ")},
        {"messages": conversation("", "a")[1:]},
        {"messages": "q"},
        {"messages": None},
        {"messages": [{"role": "user", "content": ["q"]}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]},
        {"messages": [{"content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "system", "content": "s"}, *conversation("q", "a")]},
        {"prompt": "q", "completion": " "},
        {"prompt": "q", "completion": None},
        {"prompt": 3, "completion": "a"},
    ]
    table, report = table_of(jsonl(tmp_path / "d.jsonl", rows), strict)
    assert len(table) == report.used == 1
    assert report.read == len(rows)
    assert report.dropped == {
        "without an assistant turn": 1,
        "with an empty response": 2,
        "without a turn before the response": 1,
        "whose messages is no list of {role, content}": 2,
        "whose messages has a turn without role or with a content that is not text": 2,
        "whose messages has a content with a part of kind str; text alone is read": 1,
        "rejected by the chat template (user first)": 1,
        "whose prompt or completion is neither text nor a list of messages": 1,
        "whose completion is text and whose prompt is not": 1,
    }
    assert report.lines()[:2] == [
        f"{tmp_path / 'd.jsonl'}: 1 of 13 rows used",
        "dropped: 2 with an empty response (first: d.jsonl:3)",
    ]


def test_when_no_row_is_usable_the_reasons_are_named(chat: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"messages": "text"}] * 3)
    words = "0 of 3 rows used; dropped: 3 whose messages is no list of {role, content} (first: d.jsonl:1)"
    assert rejection(path, chat) == f"data.path: no usable row in {path}: {words}"


@pytest.mark.parametrize("stem", ["zephyr", "chatml"])
def test_the_recipes_templates_render_a_prompt_that_opens_the_whole(plain: str, tmp_path: Path, stem: str) -> None:
    template = REPOSITORY / "configs" / "templates" / f"{stem}.jinja"
    path = jsonl(tmp_path / "d.jsonl", [{"messages": [{"role": "system", "content": "s"}, *conversation("q", "a")]}])
    table, report = table_of(path, plain, chat_template=str(template))
    ((prompt, response),) = texts(table, plain)
    assert report.used == 1
    assert response.startswith("a")
    assert table[0].response[-1] == EOS
    assert prompt.endswith("assistant|>\n" if stem == "zephyr" else "<|im_start|>assistant\n")
