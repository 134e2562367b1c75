"""What a row loses on its way is counted: turns, fields, contents that a template drops or changes, settings without an
effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.dataset_rows import TEMPLATE, conversation, jsonl, rejection, table_of, texts, with_template

ROW = {"messages": conversation("q", "a")}
OTHERWISE = "whose response the chat template writes otherwise than it is given"
LEFT_OUT = "with turns that the chat template leaves out or writes otherwise"


@pytest.mark.parametrize(
    ("template", "noted"),
    [
        (TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]"), {OTHERWISE: 1}),
        (TEMPLATE.replace("m['content']", "(m['content'] | upper)"), {OTHERWISE: 1, LEFT_OUT: 1}),
        (TEMPLATE.replace("for m in messages", "for m in messages if m['role'] != 'system'"), {LEFT_OUT: 1}),
        (TEMPLATE.replace("m['content']", "(m['content'] | trim)"), {}),
        (TEMPLATE, {}),
    ],
)
def test_a_template_that_changes_content_is_noticed(
    plain: str, tmp_path: Path, template: str, noted: dict[str, int]
) -> None:
    model = with_template(plain, template, tmp_path / "changing")
    turns = [{"role": "system", "content": " sys "}, *conversation("q", "r</think>a")]
    _, report = table_of(jsonl(tmp_path / "d.jsonl", [{"messages": turns}]), model)
    assert report.noted == noted


def test_a_response_that_is_rendered_empty_is_dropped(plain: str, chat: str, tmp_path: Path) -> None:
    call = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    _, report = table_of(jsonl(tmp_path / "d.jsonl", [{"messages": call}, ROW]), chat)
    assert report.dropped == {"with an empty response": 1}
    _, report = table_of(jsonl(tmp_path / "e.jsonl", [{"prompt": "q ", "completion": c} for c in ("</s>", "a")]), plain)
    assert report.dropped == {"with an empty response": 1}


@pytest.mark.parametrize(
    ("turn", "key"), [({"reasoning_content": "r"}, "reasoning_content"), ({"weight": 0}, "weight")]
)
def test_fields_of_messages_that_no_template_shows_are_noted(
    chat: str, tmp_path: Path, turn: dict[str, Any], key: str
) -> None:
    turns = conversation("q", "a")
    _, report = table_of(jsonl(tmp_path / "d.jsonl", [{"messages": [turns[0], turns[1] | turn]}]), chat)
    assert report.noted == {f"whose messages have {key}, which the chat template does not show": 1}


def test_turns_that_are_not_learned_from_are_noted_also_where_all_are_asked_for(chat: str, tmp_path: Path) -> None:
    rows = [{"messages": conversation("q", "a", "r", "", "s", "b", "t")}, {"messages": conversation("q", "a")}]
    table, report = table_of(jsonl(tmp_path / "d.jsonl", rows), chat, turns="all")
    assert len(table) == 3
    assert report.noted == {
        "with assistant turns that are empty or open the conversation, which are not learned from": 1,
        "with turns after the last assistant turn, which are left out": 1,
    }


def test_columns_that_are_ignored_are_noted(chat: str, tmp_path: Path) -> None:
    rows = [ROW | {"prompt": "p", "completion": "c"}, ROW | {"system": 5}]
    table, report = table_of(jsonl(tmp_path / "d.jsonl", rows), chat)
    assert len(table) == 2
    assert report.noted == {
        "whose prompt and completion are ignored: it has messages too": 1,
        "whose system column is ignored: it is not text": 1,
    }


def test_settings_without_an_effect_are_rejected(chat: str, plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.JSONL", [ROW] * 3)
    told = rejection(path, chat, chat_template_kwargs={"enable_thinkin": False})
    assert told.startswith("data.chat_template_kwargs enable_thinkin: the chat template has no such variable; it has n")
    assert "one file, without splits; leave data.split out" in rejection(path, chat, split="test")
    assert "of 3 rows none is held out; a larger fraction" in rejection(path, chat, held_out=1e-9)
    linked = tmp_path / "linked.jsonl"
    linked.symlink_to(path)
    for same in (path, linked):
        assert "the run is trained on it; name other rows" in rejection(path, chat, held_out=str(same))
    assert "</s>: it ends a response" in rejection(path, chat, content_tokens=["</s>"])
    broken = with_template(plain, "{{ 1 }\n", tmp_path / "broken")
    assert "line 1: no Jinja template: unexpected '}'" in rejection(path, broken)


def test_splits_whose_names_begin_alike_are_told_apart(chat: str, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name, answer in (("train_sft", "a"), ("train_gen", "b"), ("test_sft", "c")):
        jsonl(folder / f"{name}-00000-of-00001.jsonl", [{"messages": conversation("q", answer)}])
    assert texts(table_of(folder, chat, split="train_sft")[0], chat)[0][1] == "a</s>"
    told = rejection(folder, chat)
    assert told == f"data.split train: {folder} has train_gen, train_sft: name one of them"


def test_half_of_a_character_in_a_prompt_to_evaluate_is_one_line(chat: str, tmp_path: Path) -> None:
    from cluster.data.ends import end_tokens
    from cluster.data.tokenizer import load_tokenizer
    from cluster.data.tokens import Tokenisation
    from cluster.evaluation.questions import question_ids, read_questions
    from contracts.errors import UserError
    from learner.config import ModelConfig

    tokenizer = load_tokenizer(ModelConfig(path=chat))
    path = tmp_path / "p.jsonl"
    for row in ({"prompt": "\ud800"}, {"messages": [{"role": "user", "content": "\ud800"}]}):
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=r"p.jsonl:1: with text that is no Unicode"):
            question_ids(read_questions(path)[0], Tokenisation(tokenizer, end_tokens(tokenizer)))
