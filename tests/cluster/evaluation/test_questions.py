"""Prompts are read as training reads them, and a broken line is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config.sections import DataConfig
from cluster.data.ends import end_tokens
from cluster.data.loading import load_tables
from cluster.data.tokenizer import load_tokenizer
from cluster.data.tokens import Tokenisation
from cluster.evaluation.questions import Question, question_ids, read_questions
from contracts.errors import UserError
from learner.config import ModelConfig
from support.prompts import ANSWER, USER, prompts_file

NO_TEXT = ":2: a line whose messages has a turn without role or with a content that is not text"


def test_a_last_assistant_turn_is_left_out_of_the_prompt(tmp_path: Path) -> None:
    path = prompts_file(
        tmp_path,
        {"messages": [USER, ANSWER]},
        {"messages": [USER]},
        {"prompt": "2 + 2 ="},
        {"messages": [USER, ANSWER, USER]},
    )
    questions = read_questions(path)
    assert [q.messages for q in questions] == [[USER], [USER], None, [USER, ANSWER, USER]]
    assert [q.text for q in questions] == [USER["content"], USER["content"], "2 + 2 =", USER["content"]]
    assert [q.where for q in questions] == [f"{path}:{number}" for number in (1, 2, 3, 4)]


def test_prompts_are_tokenised_as_in_training(demo_model: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"messages": [USER, ANSWER]}, {"prompt": USER["content"], "completion": " 1 2 9"}]
    path = prompts_file(tmp_path, *rows)
    tokenizer = load_tokenizer(ModelConfig(path=demo_model))
    table = load_tables(DataConfig(path=str(path)), "sapo", tokenizer, end_tokens(tokenizer)).train
    tokenisation = Tokenisation(tokenizer, end_tokens(tokenizer))
    assert [question_ids(q, tokenisation) for q in read_questions(path)] == [table[i].prompt.tolist() for i in (0, 1)]


def test_tools_of_a_prompt_reach_the_template(demo_model: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=demo_model))
    tokenizer.chat_template = "{% for t in tools %}{{ t.name }} {% endfor %}{{ messages[0].content }}"
    path = prompts_file(tmp_path, {"messages": [USER], "tools": [{"name": "sum"}]})
    (question,) = read_questions(path)
    found = question_ids(question, Tokenisation(tokenizer, end_tokens(tokenizer)))
    assert found == tokenizer(f"sum {USER['content']}")["input_ids"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, ":2: messages, or instruction or prompt as text, is expected; found the keys (none)"),
        ({"question": "q"}, ":2: messages, or instruction or prompt as text, is expected; found the keys question"),
        (
            {"prompt": ["q"]},
            ":2: messages, or instruction or prompt as text, is expected; found a prompt that is not text",
        ),
        ({"messages": []}, ":2: no message before the response"),
        ({"messages": [ANSWER]}, ":2: no message before the response"),
        ({"messages": "q"}, ":2: a line whose messages is no list of {role, content}"),
        ({"messages": ["q"]}, ":2: a line whose messages is no list of {role, content}"),
        ({"messages": [{"role": "user"}]}, NO_TEXT),
        ({"messages": [{"role": "user", "content": 3}]}, NO_TEXT),
        ([1], ":2: an object is expected, found list"),
    ],
)
def test_a_broken_prompt_is_named_by_line(tmp_path: Path, row: object, words: str) -> None:
    path = prompts_file(tmp_path, {"prompt": "fine"}, row)
    with pytest.raises(UserError) as caught:
        read_questions(path)
    assert str(caught.value) == f"--prompts {path}{words}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', ":2: not UTF-8: invalid continuation byte at byte 12 of the line"),
        (b'{"prompt": "a"}\n\n{"prompt"\n', ":3: not JSON: Expecting ':' delimiter; one object a line is expected"),
        (b"", ": no prompt in it"),
        (b"\n \n", ": no prompt in it"),
    ],
)
def test_a_prompts_file_that_is_no_jsonl_is_rejected(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_questions(path)
    assert str(caught.value) == f"--prompts {path}{words}"


def test_a_prompts_path_that_is_no_file_is_rejected(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"--prompts {path}: can't be read: {words}"):
            read_questions(path)


def test_conversations_need_a_chat_template(demo_model: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=demo_model))
    tokenizer.chat_template = None
    tokenisation = Tokenisation(tokenizer, end_tokens(tokenizer))
    assert question_ids(Question("p:1", "write", None), tokenisation) == tokenizer("write")["input_ids"]
    with pytest.raises(UserError, match="has no chat template"):
        question_ids(Question("p:1", "write", [USER]), tokenisation)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match=r"--prompts p:1: rejected by the chat template \(never\)"):
        question_ids(Question("p:1", "write", [USER]), tokenisation)
    with pytest.raises(UserError, match="--prompts p:1: the prompt is empty"):
        question_ids(Question("p:1", "", None), tokenisation)
