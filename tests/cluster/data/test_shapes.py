"""Every shape in which people bring rows: what is read of it, or the reason under which it is counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.dataset_rows import conversation, jsonl, rejection, table_of, texts, with_template

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
PROMPT = "<s><|user|>q</s><|assistant|>"
ONE = [(PROMPT, "a</s>")]
NO_TEXT = "whose messages has a turn without role or with a content that is not text"

TOOLS_TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}{% endfor %}{{ eos_token }}"
    "{% endif %}"
    "{% for m in messages %}{{ '<|' + ('user' if m.role == 'tool' else m.role) + '|>' + m.content }}"
    "{% if m.tool_calls is defined %}{% for c in m.tool_calls %}"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def messages(*turns: object) -> dict[str, Any]:
    return {"messages": list(turns)}


READ: dict[str, tuple[dict[str, Any], Sequence[tuple[str, ...]], dict[str, int]]] = {
    "role and content": (messages(Q, A), ONE, {}),
    "keys that Arrow filled with None": (
        messages(Q | {"tool_calls": None, "name": None}, A | {"tool_calls": None, "name": None}),
        ONE,
        {},
    ),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ONE, {}),
    "ShareGPT under messages": (messages({"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}), ONE, {}),
    "both forms, one of them None": (
        messages(
            {"from": "human", "value": "q", "role": None, "content": None},
            {"from": "gpt", "value": "a", "role": None, "content": None},
        ),
        ONE,
        {},
    ),
    "roles in capitals": (messages(Q | {"role": "User"}, A | {"role": "ASSISTANT"}), ONE, {}),
    "content in parts": (
        messages(Q | {"content": [{"type": "text", "text": "q"}]}, A | {"content": [{"type": "text", "text": "a"}]}),
        ONE,
        {},
    ),
    "several parts": (
        messages(Q | {"content": [{"type": "text", "text": "q"}, {"text": "r", "image": None}]}, A),
        [("<s><|user|>qr</s><|assistant|>", "a</s>")],
        {},
    ),
    "JSON in a string": ({"messages": json.dumps([Q, A])}, ONE, {}),
    "messages null beside prompt and completion": ({"messages": None, "prompt": [Q], "completion": [A]}, ONE, {}),
    "messages null beside text": (
        {"messages": None, "prompt": "q =", "completion": " a"},
        [("<s>q =", " a</s>")],
        {},
    ),
    "one message in place of a list": ({"prompt": Q, "completion": A}, ONE, {}),
    "prompt as text, completion as messages": ({"prompt": "q", "completion": [A]}, ONE, {}),
    "prompt as messages, completion as text": ({"prompt": [Q], "completion": "a"}, ONE, {}),
    "completion that repeats its prompt": ({"prompt": [Q], "completion": [Q, A]}, ONE, {}),
    "completion of several turns": (
        {"prompt": [Q], "completion": [A, Q | {"content": "r"}, A | {"content": "b"}]},
        [("<s><|user|>q</s><|assistant|>a</s><|user|>r</s><|assistant|>", "b</s>")],
        {},
    ),
    "a system column": (
        messages(Q, A) | {"system": "s"},
        [("<s><|system|>s</s><|user|>q</s><|assistant|>", "a</s>")],
        {},
    ),
    "an empty system column": (messages(Q, A) | {"system": ""}, ONE, {}),
    "a system column of None": (messages(Q, A) | {"system": None}, ONE, {}),
    "a system column beside a system turn": (
        messages({"role": "system", "content": "t"}, Q, A) | {"system": "s"},
        [("<s><|system|>t</s><|user|>q</s><|assistant|>", "a</s>")],
        {"whose system column is ignored: the conversation has a system turn of its own": 1},
    ),
    "a system column beside text": (
        {"prompt": "q", "completion": " a", "system": "s"},
        [("<s>q", " a</s>")],
        {"whose system column is ignored: prompt and completion are text that no template renders": 1},
    ),
    "a row that ends with a user turn": (
        messages(Q, A, Q),
        ONE,
        {"with turns after the last assistant turn, which are left out": 1},
    ),
    "an assistant turn first": (
        messages(A, Q, A | {"content": "b"}),
        [("<s><|assistant|>a</s><|user|>q</s><|assistant|>", "b</s>")],
        {},
    ),
    "a NUL character": (messages(Q, A | {"content": "a\0b"}), [(PROMPT, "a\0b</s>")], {}),
    "text beyond the basic plane": (messages(Q, A | {"content": "a 🦙 é"}), [(PROMPT, "a 🦙 é</s>")], {}),
    "both halves of a surrogate pair": (messages(Q, A | {"content": "\ud83e\udd99"}), [(PROMPT, "🦙</s>")], {}),
    "line breaks of Windows in content": (messages(Q, A | {"content": "a\r\nb"}), [(PROMPT, "a\r\nb</s>")], {}),
    "text that begins like JSON": (
        {"prompt": "[1, 2] and", "completion": " [3]"},
        [("<s>[1, 2] and", " [3]</s>")],
        {},
    ),
    "tools that the template does not show": (
        messages(Q, A) | {"tools": [{"name": "f"}]},
        ONE,
        {"whose tools are ignored: the chat template does not show any": 1},
    ),
    "a role that nobody knows": (
        messages({"role": "alien", "content": "q"}, A),
        [("<s><|alien|>q</s><|assistant|>", "a</s>")],
        {"with a turn of role alien, of which the chat template knows nothing": 1},
    ),
    "an empty list of tools": (messages(Q, A) | {"tools": []}, ONE, {}),
    "text after the end in a completion": (
        {"prompt": "q", "completion": " a</s> b"},
        [("<s>q", " a</s>")],
        {"with text after an end token in the response, which is cut off": 1},
    ),
    "white space after the end in a completion": ({"prompt": "q", "completion": " a</s>\n"}, [("<s>q", " a</s>")], {}),
    "text that is rendered already": (
        {"prompt": "<|user|>q</s><|assistant|>", "completion": "a</s>"},
        ONE,
        {"whose prompt is text with special tokens in it, which are read as such": 1},
    ),
    "text that brings its beginning": ({"prompt": "<s>q", "completion": " a"}, [("<s>q", " a</s>")], {}),
    "an empty prompt": ({"prompt": "", "completion": "a"}, [("<s>", "a</s>")], {}),
}


@pytest.mark.parametrize("shape", READ)
def test_what_is_unambiguous_is_read(chat: str, tmp_path: Path, shape: str) -> None:
    row, expected, noted = READ[shape]
    table, report = table_of(jsonl(tmp_path / "d.jsonl", [row]), chat)
    assert texts(table, chat) == expected
    assert (report.dropped, report.noted) == ({}, noted)


NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "no assistant turn": (messages(Q), "without an assistant turn"),
    "an unknown role for the answer": (messages(Q, {"role": "critic", "content": "a"}), "without an assistant turn"),
    "nothing before the answer": (messages(A), "without a turn before the response"),
    "an empty answer": (messages(Q, A | {"content": " \n"}), "with an empty response"),
    "an answer of None": (messages(Q, A | {"content": None}), NO_TEXT),
    "a number as content": (messages(Q, A | {"content": 3}), NO_TEXT),
    "no role": (messages({"content": "q"}, A), NO_TEXT),
    "a picture": (
        messages(Q | {"content": [{"type": "image", "image": "x.png"}, {"type": "text", "text": "q"}]}, A),
        "whose messages has a content with a part of kind image; text alone is read",
    ),
    "text in place of messages": ({"messages": "q"}, "whose messages is no list of {role, content}"),
    "turns that are no objects": (messages("q", "a"), "whose messages is no list of {role, content}"),
    "an empty list": (messages(), "without an assistant turn"),
    "a completion of None": (
        {"prompt": "q", "completion": None},
        "whose prompt or completion is neither text nor a list of messages",
    ),
    "a prompt that is a number": ({"prompt": 3, "completion": "a"}, "whose completion is text and whose prompt is not"),
    "a completion that continues another prompt": (
        {"prompt": [Q], "completion": [Q | {"content": "r"}, A]},
        "whose completion neither begins with its prompt nor with an assistant turn",
    ),
    "half of a surrogate pair": (
        messages(Q, A | {"content": "a\ud83e"}),
        "with text that is no Unicode (half of a surrogate pair)",
    ),
    "half of a surrogate pair in a prompt": (
        {"prompt": "q\udd99", "completion": "a"},
        "with text that is no Unicode (half of a surrogate pair)",
    ),
    "tools that are no list": (messages(Q, A) | {"tools": 3}, "whose tools are no list of objects"),
    "tools that are no JSON": (messages(Q, A) | {"tools": "f(x)"}, "whose tools are text that is not JSON"),
    "other columns": ({"question": "q", "answer": "a"}, "no column 'messages' and no 'prompt' with 'completion'"),
}


@pytest.mark.parametrize("shape", NAMED)
def test_what_can_not_be_read_is_counted_with_its_place(chat: str, tmp_path: Path, shape: str) -> None:
    row, reason = NAMED[shape]
    _, report = table_of(jsonl(tmp_path / "d.jsonl", [messages(Q, A), row, row]), chat)
    assert (report.used, report.dropped) == (1, {reason: 2})
    assert report.first[reason] == "d.jsonl:2"


PAIRS: dict[str, tuple[dict[str, Any], list[tuple[str, ...]] | str]] = {
    "two conversations": (
        {"chosen": conversation("q", "a"), "rejected": conversation("q", "b")},
        [(PROMPT, "a</s>", "b</s>")],
    ),
    "two conversations and their prompt": (
        {"prompt": "q", "chosen": conversation("q", "a"), "rejected": conversation("q", "b")},
        [(PROMPT, "a</s>", "b</s>")],
    ),
    "a prompt of messages and an answer each": (
        {"prompt": [Q], "chosen": [A], "rejected": [A | {"content": "b"}]},
        [(PROMPT, "a</s>", "b</s>")],
    ),
    "an answer that is one message": (
        {"prompt": "q", "chosen": A, "rejected": A | {"content": "b"}},
        [(PROMPT, "a</s>", "b</s>")],
    ),
    "conversations as JSON in a string": (
        {"chosen": json.dumps(conversation("q", "a")), "rejected": json.dumps(conversation("q", "b"))},
        [(PROMPT, "a</s>", "b</s>")],
    ),
    "several new turns that are the same": (
        {
            "prompt": [Q],
            "chosen": [A, Q | {"content": "r"}, A],
            "rejected": [A, Q | {"content": "r"}, A | {"content": "b"}],
        },
        [("<s><|user|>q</s><|assistant|>a</s><|user|>r</s><|assistant|>", "a</s>", "b</s>")],
    ),
    "several new turns that differ": (
        {"prompt": [Q], "chosen": [A, Q, A], "rejected": [A | {"content": "x"}, Q, A | {"content": "b"}]},
        "whose chosen and rejected differ in more than the last assistant turn",
    ),
    "one side of several turns": (
        {"chosen": conversation("q", "a", "r", "b"), "rejected": conversation("q", "a")},
        "whose chosen and rejected differ in more than the last assistant turn",
    ),
    "different prompts": (
        {"chosen": conversation("q", "a"), "rejected": conversation("p", "a")},
        "whose chosen and rejected answer different prompts",
    ),
    "the same answer": (
        {"chosen": conversation("q", "a"), "rejected": conversation("q", "a")},
        "whose chosen and rejected are the same",
    ),
    "the same text": ({"prompt": "q", "chosen": " a", "rejected": " a"}, "whose chosen and rejected are the same"),
    "the same up to the end token": (
        {"prompt": "q", "chosen": " a", "rejected": " a</s>"},
        "whose chosen and rejected are the same",
    ),
    "text without a prompt": (
        {"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"},
        "whose chosen is text and whose prompt is not",
    ),
    "an empty rejected answer": ({"prompt": "q", "chosen": "a", "rejected": ""}, "with an empty response"),
    "rejected is None": (
        {"prompt": [Q], "chosen": [A], "rejected": None},
        "whose rejected is no list of {role, content}",
    ),
}


@pytest.mark.parametrize("shape", PAIRS)
def test_pairs_are_read_or_counted(chat: str, tmp_path: Path, shape: str) -> None:
    row, expected = PAIRS[shape]
    good = {"prompt": [Q], "chosen": "good", "rejected": "bad"}
    table, report = table_of(jsonl(tmp_path / "d.jsonl", [good, row]), chat, "offline")
    if isinstance(expected, str):
        assert report.dropped == {expected: 1}
    else:
        assert texts(table, chat)[1:] == expected


def test_pairs_that_are_the_same_within_the_limit_are_dropped(plain: str, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "x" * 30 + end, "rejected": "x" * 30 + "z"} for end in "zy"]
    rows.append({"prompt": "q", "chosen": "yx", "rejected": "xy"})
    limits = {"max_length": 16, "max_prompt_length": 8}
    _, report = table_of(jsonl(tmp_path / "d.jsonl", rows), plain, "offline", **limits)
    assert report.dropped == {
        "whose chosen and rejected are the same": 1,
        "whose chosen and rejected are the same within 16 tokens": 1,
    }


def test_a_prompt_that_its_conversations_do_not_ask_is_ignored_and_counted(chat: str, tmp_path: Path) -> None:
    row = {"prompt": "other", "chosen": conversation("q", "a"), "rejected": conversation("q", "b")}
    table, report = table_of(jsonl(tmp_path / "d.jsonl", [row]), chat, "offline")
    assert texts(table, chat) == [(PROMPT, "a</s>", "b</s>")]
    assert report.noted["whose prompt is ignored: chosen is a conversation and its prompt is another"] == 1


def test_values_that_are_nested_too_deeply_are_counted(chat: str, tmp_path: Path) -> None:
    deep = '{"messages": [{"role": "user", "content": "q", "x": ' + "[" * 700 + "]" * 700 + "}]}\n"
    path = jsonl(tmp_path / "d.jsonl", [messages(Q, A)])
    with path.open("a") as file:
        file.write(deep)
    _, report = table_of(path, chat)
    assert (report.used, report.dropped) == (1, {"whose values are nested too deeply": 1})


def test_a_remark_counts_a_row_once(chat: str, tmp_path: Path) -> None:
    """Both sides end with a user turn; and the rows of an array on one line are at one place."""
    row = {"chosen": conversation("q", "a", "r"), "rejected": conversation("q", "b", "r")}
    (tmp_path / "d.json").write_text(json.dumps([row] * 3))
    _, report = table_of(tmp_path / "d.json", chat, "offline")
    assert report.noted == {"with turns after the last assistant turn, which are left out": 3}


def test_every_assistant_turn_can_be_a_row_of_its_own(chat: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [messages(*conversation("q", "a", "r", "", "s", "b"))])
    table, report = table_of(path, chat, turns="all")
    assert texts(table, chat) == [
        (PROMPT, "a</s>"),
        ("<s><|user|>q</s><|assistant|>a</s><|user|>r</s><|assistant|></s><|user|>s</s><|assistant|>", "b</s>"),
    ]
    assert (report.read, report.used) == (1, 2)


@pytest.mark.parametrize("kept", ["column", "JSON", "JSON of each"])
def test_tools_and_tool_turns_reach_the_template(plain: str, tmp_path: Path, kept: str) -> None:
    model = with_template(plain, TOOLS_TEMPLATE, tmp_path / "tools")
    tools = [{"name": "f", "parameters": {"x": {"type": "int"}, "y": None}}]
    call = {"id": None, "function": {"name": "f", "arguments": {"x": 1, "other": None}}}
    as_text = {"function": {"name": "f", "arguments": '{"x": 1}'}}
    column = {"column": tools, "JSON": json.dumps(tools), "JSON of each": [json.dumps(tool) for tool in tools]}[kept]
    row = {
        "messages": [
            Q | {"tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call, as_text]},
            {"role": "tool", "content": "7", "tool_calls": None},
            A | {"tool_calls": []},
        ],
        "tools": column,
    }
    table, report = table_of(jsonl(tmp_path / "d.jsonl", [row]), model)
    shown = '{"name": "f", "parameters": {"x": {"type": "int"}}}'
    assert texts(table, model) == [
        (
            f'<s><|system|>{shown}</s><|user|>q</s><|assistant|>f{{"x": 1}}f{{"x": 1}}</s><|user|>7</s><|assistant|>',
            "a</s>",
        )
    ]
    assert report.noted == {}


def test_a_turn_that_only_calls_a_tool_can_be_learned(plain: str, tmp_path: Path) -> None:
    model = with_template(plain, TOOLS_TEMPLATE, tmp_path / "tools")
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [messages(Q, turn)]), model)
    assert texts(table, model) == [(PROMPT, 'f{"x": 1}</s>')]


def test_columns_of_no_row_are_named_at_once(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"question": "q", "answer": "a"}] * 3)
    words = "no column 'messages' and no 'prompt' with 'completion'; the columns are "
    none = "question, answer; name them in data.messages_column, or in data.prompt_column and data.completion_column"
    assert rejection(path, plain) == f"data.path {path}: {words}{none}"
    jsonl(path, [{"chosen": conversation("q", "a"), "rejected": conversation("q", "b")}])
    chosen = "chosen, rejected; chosen holds a conversation: set data.messages_column=chosen"
    assert rejection(path, plain) == f"data.path {path}: {words}{chosen}"


def test_struct_columns_of_parquet_lose_what_arrow_added(chat: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [messages(Q, A | {"name": "x"}), messages(Q, A), {"messages": None, "prompt": "q", "completion": " a"}]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(rows[::-1]).schema), tmp_path / "d.parquet")
    table, report = table_of(tmp_path / "d.parquet", chat)
    assert len(table) == 3
    assert texts(table, chat)[1:] == [*ONE, ("<s>q", " a</s>")]
    assert report.dropped == {}
