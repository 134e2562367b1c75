"""The same conversations give the same tokens as in TRL, for the templates of nine families of models.

The differences, each on purpose: a response ends with its end token, where TRL also learns the white space or the
second end token that a template writes after it; and a template that writes no beginning-of-sequence token on a
tokenizer that puts one before text is made to write it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.dataset_rows import conversation, jsonl, table_of
from support.public_templates import PUBLIC, public_tokenizer, save_public

TALKS = [
    conversation("hello, how many days?", "it has seven days."),
    conversation("a", "He said: hello", "b", " The answer is\n\n seven. "),
    conversation("He", "He"),
    conversation("é 🦙\n", "\n\n```\n  code\n```"),
    conversation("a", "b", "c", "d", "e", "f g"),
]
SYSTEM = {"role": "system", "content": "Say the number."}
AFTER_THE_END = {"", "\n", "<|endoftext|>"}


@pytest.mark.parametrize("name", PUBLIC)
def test_prompt_and_response_are_those_of_trl(tmp_path: Path, name: str) -> None:
    from trl.data_utils import _tokenize, common_prefix_length

    talks = TALKS + ([[SYSTEM, *talk] for talk in TALKS] if PUBLIC[name].system else [])
    path = jsonl(tmp_path / "d.jsonl", [{"messages": talk} for talk in talks])
    table, report = table_of(path, save_public(name, tmp_path / "model"))
    assert (report.used, report.dropped) == (len(talks), {})
    tokenizer = public_tokenizer(name)
    for number, talk in enumerate(talks):
        asked = _tokenize(tokenizer, talk[:-1], add_generation_prompt=True)["input_ids"]
        whole = _tokenize(tokenizer, talk)["input_ids"]
        if name == "Zephyr":
            asked, whole = ([tokenizer.bos_token_id, *ids] for ids in (asked, whole))
        split = common_prefix_length(asked, whole)
        row = table[number]
        end = split + len(row.response)
        assert row.prompt.tolist() == whole[:split]
        assert row.response.tolist() == whole[split:end]
        assert tokenizer.decode(whole[end:]) in AFTER_THE_END


@pytest.mark.parametrize("name", PUBLIC)
def test_pairs_are_those_of_trl(tmp_path: Path, name: str) -> None:
    from trl.data_utils import _tokenize, common_prefix_length, maybe_extract_prompt

    row = {"chosen": TALKS[1], "rejected": [*TALKS[1][:-1], {"role": "assistant", "content": "six"}]}
    table, _ = table_of(jsonl(tmp_path / "d.jsonl", [row]), save_public(name, tmp_path / "model"), "offline")
    tokenizer = public_tokenizer(name)
    parts = maybe_extract_prompt(row)
    asked = _tokenize(tokenizer, parts["prompt"], add_generation_prompt=True)["input_ids"]
    opening = [tokenizer.bos_token_id] if name == "Zephyr" else []
    found = table[0]
    assert found.rejected is not None
    for ids, side in ((found.response, "chosen"), (found.rejected, "rejected")):
        whole = _tokenize(tokenizer, parts["prompt"] + parts[side])["input_ids"]
        assert found.prompt.tolist() == opening + whole[: common_prefix_length(asked, whole)]
        expected = [*opening, *whole][len(found.prompt) :]
        assert ids.tolist() == expected[: len(ids)]
        assert tokenizer.decode(expected[len(ids) :]) in AFTER_THE_END
