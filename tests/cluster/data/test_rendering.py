"""Templates that do not fit are named with what to set; what a template renders is the same on every day."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cluster.config.loading import validate_config
from cluster.data.rendering import ChatTemplate
from cluster.data.tokenizer import load_tokenizer
from contracts.errors import UserError
from learner.config import ModelConfig
from support.dataset_rows import conversation, jsonl, rejection, table_of, texts, with_template

TURNS = "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
ASKS = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
THINKS = (
    TURNS + "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is not defined or enable_thinking %}"
    "<think>\n{% endif %}{% endif %}"
)
DATED = "{{ bos_token }}Today: {{ strftime_now('%d %B %Y') }}" + TURNS.removeprefix("{{ bos_token }}") + ASKS
STRIPS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + (m.content if loop.last else m.content | upper) "
    "+ eos_token }}{% endfor %}" + ASKS
)
ROW = {"messages": conversation("q", "a")}


def rows_of(tmp_path: Path, plain: str, template: str, *rows: object, **data: object) -> tuple[list[Any], Any]:
    model = with_template(plain, template, tmp_path / "model")
    table, report = table_of(jsonl(tmp_path / "d.jsonl", rows or [ROW]), model, **data)
    return texts(table, model), report


def test_a_template_that_ignores_add_generation_prompt_is_rejected(plain: str, tmp_path: Path) -> None:
    model = with_template(plain, TURNS, tmp_path / "model")
    assert rejection(jsonl(tmp_path / "d.jsonl", [ROW]), model) == (
        "data: the chat template ignores add_generation_prompt, so that '<|assistant|>' would be part of every "
        "response: name a template in data.chat_template that writes it when it is asked for"
    )


def test_white_space_before_every_answer_is_no_header(plain: str, tmp_path: Path) -> None:
    turn = "{{ bos_token + m.content if m.role == 'user' else ' ' + m.content + eos_token }}"
    bare = "{% for m in messages %}" + turn + "{% endfor %}"
    assert rows_of(tmp_path, plain, bare)[0] == [("<s>q", " a</s>")]


def test_a_template_that_opens_reasoning_is_named_with_its_switch(plain: str, tmp_path: Path) -> None:
    model = with_template(plain, THINKS, tmp_path / "model")
    path = jsonl(tmp_path / "d.jsonl", [ROW])
    assert rejection(path, model) == (
        f"data.path: no usable row in {path}: 0 of 1 rows used; dropped: 1 whose response the chat template does not "
        "begin as it asks for one, with '<|assistant|><think>\\n': set data.chat_template_kwargs "
        "{enable_thinking: false} (first: d.jsonl:1)"
    )
    table, _ = table_of(path, model, chat_template_kwargs={"enable_thinking": False})
    assert texts(table, model) == [("<s><|user|>q</s><|assistant|>", "a</s>")]


def test_a_template_that_changes_earlier_turns_is_named(plain: str, tmp_path: Path) -> None:
    talk = {"messages": conversation("q", "a", "r", "b")}
    path = jsonl(tmp_path / "d.jsonl", [talk])
    said = rejection(path, with_template(plain, STRIPS, tmp_path / "model"))
    assert "whose earlier turns the chat template writes otherwise when a response follows: name a template" in said


@pytest.mark.parametrize("today", ["2024-07-26", "2031-02-01"])
def test_a_dated_template_prints_the_date_of_the_configuration(plain: str, tmp_path: Path, today: str) -> None:
    shown = date.fromisoformat(today).strftime("%d %B %Y")
    given = {} if today == "2024-07-26" else {"template_date": today}
    found, _ = rows_of(tmp_path, plain, DATED, **given)
    assert found == [(f"<s>Today: {shown}<|user|>q</s><|assistant|>", "a</s>")]


def test_every_error_of_a_template_is_counted_in_its_own_words(plain: str, tmp_path: Path) -> None:
    template = (
        "{% if messages[0].content == 'none' %}{{ 1 + messages[0].nothing }}{% endif %}"
        "{% if messages[0].content == 'type' %}{{ 'x' + 1 }}{% endif %}"
        "{% if messages[0].content == 'own' %}{{ raise_exception('not this') }}{% endif %}" + TURNS + ASKS
    )
    rows = [{"messages": conversation(text, "a")} for text in ("q", "none", "type", "own")]
    _, report = rows_of(tmp_path, plain, template, *rows)
    assert report.used == 1
    assert set(report.dropped) == {
        "rejected by the chat template ('dict object' has no attribute 'nothing')",
        'rejected by the chat template (TypeError: can only concatenate str (not "int") to str)',
        "rejected by the chat template (not this)",
    }


def test_a_message_without_optional_keys_is_no_none_in_print(plain: str, tmp_path: Path) -> None:
    template = TURNS.replace("m.content", "m.content + (m.name if m.name is defined else '')") + ASKS
    row = {"messages": [turn | {"name": None} for turn in conversation("q", "a")]}
    assert rows_of(tmp_path, plain, template, row)[0] == [("<s><|user|>q</s><|assistant|>", "a</s>")]


def test_variables_reach_the_template(plain: str, tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ style }}" + TURNS.removeprefix("{{ bos_token }}") + ASKS
    found, _ = rows_of(tmp_path, plain, template, chat_template_kwargs={"style": "short"})
    assert found[0][0] == "<s>short<|user|>q</s><|assistant|>"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "strftime_now", "tokenize"])
def test_variables_that_rendering_sets_itself_are_rejected(name: str) -> None:
    values = {"model": {"path": "m"}, "data": {"path": "d", "chat_template_kwargs": {name: 1}}}
    with pytest.raises(UserError) as caught:
        validate_config(values, "run.yaml")
    assert str(caught.value) == (
        f"run.yaml: data.chat_template_kwargs {name}: data are rendered with this one set; name others"
    )


def test_a_template_that_wants_a_system_turn_is_not_judged_by_one_without(plain: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=plain))
    tokenizer.chat_template = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + TURNS
    ChatTemplate.of(tokenizer).reject_unusable()


def test_reasons_that_differ_from_row_to_row_are_bounded(plain: str, tmp_path: Path) -> None:
    template = "{% if messages[0].content != 'q' %}{{ raise_exception(messages[0].content) }}{% endif %}" + TURNS + ASKS
    rows = [ROW, *({"messages": conversation(str(i), "a")} for i in range(80))]
    _, report = rows_of(tmp_path, plain, template, *rows)
    assert len(report.dropped) == 51
    assert report.dropped["for other reasons"] == 30


def test_the_remedy_names_only_what_the_template_has(plain: str, tmp_path: Path) -> None:
    """One that opens reasoning in any case, and mentions thinking in its text alone."""
    always = TURNS + "{% if add_generation_prompt %}<|assistant|><think>\\n{# no thinking is no option #}{% endif %}"
    path = jsonl(tmp_path / "d.jsonl", [{"messages": conversation("q", "a")}])
    model = with_template(plain, always, tmp_path / "always")
    told = rejection(path, model)
    assert "it has no variable that leaves it out; name a template in data.chat_template" in told
    assert "chat_template_kwargs" not in told
    told = rejection(path, model, chat_template_kwargs={"reasoning_effort": "low"})
    assert told == (
        "data.chat_template_kwargs reasoning_effort: the chat template has no such variable; it has none; leave it out"
    )
    switched = with_template(plain, always.replace("{#", "{% if effort %}{{ effort }}{% endif %}{#"), tmp_path / "s")
    told = rejection(path, switched, chat_template_kwargs={"thinking": False})
    assert told == "data.chat_template_kwargs thinking: the chat template has no such variable; it has effort"
