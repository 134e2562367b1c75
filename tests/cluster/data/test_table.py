"""Text becomes token ids as the whole would be tokenised, within the length limits."""

from __future__ import annotations

from pathlib import Path

from cluster.data.report import DataReport
from cluster.data.table import TRUNCATED_PROMPT, TRUNCATED_RESPONSE
from cluster.data.tokenizer import load_tokenizer
from demo.model import write_model
from learner.config import ModelConfig
from support.dataset_rows import EOS, conversation, jsonl, table_of, texts


def test_text_and_conversations_in_one_file_each_get_their_own_special_tokens(chat: str, tmp_path: Path) -> None:
    rows = [
        {"messages": conversation("q", "a")},
        {"prompt": "q", "completion": "a"},
        {"messages": conversation("r", "b")},
    ]
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", rows), chat)
    assert [prompt for prompt, _ in texts(table, chat)] == [
        "<s><|user|>q</s><|assistant|>",
        "<s>q",
        "<s><|user|>r</s><|assistant|>",
    ]


def long_row(prompt: int, response: int) -> dict[str, str]:
    """A row of that many tokens, <s> and </s> included: letters are tokens of their own."""
    return {"prompt": ("zyxwvu" * 99)[: prompt - 1], "completion": ("abcdfg" * 99)[: response - 1]}


def lengths(path: Path, model: str, **data: object) -> tuple[list[tuple[int, int]], DataReport]:
    table, report = table_of(path, model, **data)
    return [(len(table[i].prompt), len(table[i].response)) for i in range(len(table))], report


def test_a_row_within_max_length_is_kept_whole_however_long_its_prompt(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [long_row(28, 4)])
    found, report = lengths(path, plain, max_length=32, max_prompt_length=16)
    assert (found, report.noted) == ([(28, 4)], {})


def test_a_row_over_max_length_loses_response_tokens_on_the_right(plain: str, tmp_path: Path) -> None:
    row = long_row(16, 40)
    table, report = table_of(jsonl(tmp_path / "d.jsonl", [row]), plain, max_length=32, max_prompt_length=16)
    tokenizer = load_tokenizer(ModelConfig(path=plain))
    assert texts(table, plain) == [("<s>" + row["prompt"], row["completion"][:16])]
    assert EOS not in table[0].response
    assert (report.used, report.noted) == (1, {TRUNCATED_RESPONSE: 1})
    assert tokenizer.eos_token_id == EOS


def test_a_prompt_over_its_limit_loses_tokens_on_the_left_first_or_drops_the_row(plain: str, tmp_path: Path) -> None:
    rows = [long_row(28, 10), long_row(28, 40), long_row(10, 10)]
    path = jsonl(tmp_path / "d.jsonl", rows)
    limits = {"max_length": 32, "max_prompt_length": 16}
    table, report = table_of(path, plain, long_prompts="truncate", **limits)
    assert texts(table, plain) == [
        ("<s>" + rows[0]["prompt"][-15:], rows[0]["completion"] + "</s>"),
        ("<s>" + rows[1]["prompt"][-15:], rows[1]["completion"][:16]),
        ("<s>" + rows[2]["prompt"], rows[2]["completion"] + "</s>"),
    ]
    assert report.noted == {TRUNCATED_PROMPT: 2, TRUNCATED_RESPONSE: 1}
    assert report.first == {TRUNCATED_PROMPT: "d.jsonl:1", TRUNCATED_RESPONSE: "d.jsonl:2"}
    found, report = lengths(path, plain, **limits)
    assert found == [(10, 10)]
    assert report.dropped == {"over 32 tokens with a prompt over 16": 2}


def test_of_a_pair_the_longer_response_decides(plain: str, tmp_path: Path) -> None:
    row = {"prompt": "zyxwv", "chosen": "abc", "rejected": "abcdfg" * 9}
    table, report = table_of(jsonl(tmp_path / "d.jsonl", [row]), plain, "offline", max_length=20, max_prompt_length=8)
    assert [len(ids) for ids in table[0] if ids is not None] == [6, 4, 14]
    assert report.noted == {TRUNCATED_RESPONSE: 1}


def test_a_response_ends_at_its_first_end_of_sequence_token(plain: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "q", "completion": "a</s>b"}, {"prompt": "q", "completion": "a"}])
    assert [response for _, response in texts(table_of(path, plain)[0], plain)] == ["a</s>", "a</s>"]


def test_prompt_and_response_ids_are_those_of_the_whole_text(chat: str, tmp_path: Path) -> None:
    """Where special tokens stand between the turns, as in most chat templates."""
    turns = conversation("what is the number", "the answer is the number", "the question", "is the answer")
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [{"messages": turns}]), chat)
    tokenizer = load_tokenizer(ModelConfig(path=chat))
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert [*table[0].prompt, *table[0].response] == ids
    assert len(ids) < len(str(whole).encode()), "the tokenizer merges, or the test says nothing"


def test_the_demos_conversations_are_tokenised_as_a_whole_would_be(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    turns = conversation("write 3 numbers with sum 12 ascending", "1 2 9")
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [{"messages": turns}]), str(tmp_path / "model"))
    tokenizer = load_tokenizer(ModelConfig(path=str(tmp_path / "model")))
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert [*table[0].prompt, *table[0].response] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in table[0].prompt


def test_max_rows_counts_usable_rows(chat: str, tmp_path: Path) -> None:
    rows = [{"messages": conversation("q", f"{i}" if i % 2 else "")} for i in range(20)]
    table, report = table_of(jsonl(tmp_path / "d.jsonl", rows), chat, max_rows=3)
    assert [response for _, response in texts(table, chat)] == ["1</s>", "3</s>", "5</s>"]
    assert report.used == 3
