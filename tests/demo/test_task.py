"""The demo's task: right answers only in the data, a checker that tells right from wrong, prompts held out."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from demo.model import write_model
from demo.task import HELD_OUT, LARGEST, LARGEST_SUM, _sequences, answer, check, prompts, rows, text, write_data

ASCENDING = "write 4 numbers with sum 23 ascending"
ANY = "write 4 numbers with sum 23 in any order"


@pytest.mark.parametrize(("prompt", "response"), [(ASCENDING, "1 2 5 15"), (ASCENDING, "5 6 6 6"), (ANY, "15 5 1 2")])
def test_right_answers_pass(prompt: str, response: str) -> None:
    assert check(prompt, response) is True


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (ASCENDING, "2 1 5 15"),  # order
        (ASCENDING, "1 2 5 14"),  # sum
        (ANY, "1 2 5 14"),
        (ANY, "8 15"),  # too few
        (ANY, "1 1 1 5 15"),  # too many
        (ANY, "1 3 3 16"),  # a number above the largest
        (ANY, "0 3 5 15"),  # and one below the smallest
        (ANY, "-1 4 5 15"),
        (ANY, "1 2 five 15"),  # a word
        (ANY, "1 2 5 15 <user>"),
        (ANY, ""),
    ],
)
def test_each_kind_of_wrong_answer_fails(prompt: str, response: str) -> None:
    assert check(prompt, response) is False


def test_every_prompt_has_an_answer_and_the_checker_accepts_it() -> None:
    draw = random.Random(0)
    known, held_out = prompts(0)
    for prompt in known + held_out:
        assert check(text(prompt), answer(prompt, draw)), prompt


def test_answers_are_drawn_uniformly() -> None:
    draw = random.Random(0)
    everything = [numbers for numbers in product(range(1, LARGEST + 1), repeat=3) if sum(numbers) == 7]
    assert _sequences(3, 7) == len(everything) == 15
    drawn = [answer((3, 7, "in any order"), draw) for _ in range(3000)]
    counts = [drawn.count(" ".join(map(str, numbers))) for numbers in everything]
    assert sum(counts) == 3000
    chi_square = sum((count - 200) ** 2 / 200 for count in counts)
    assert chi_square < 36.1  # the 99.9th percentile with 14 degrees of freedom


def test_held_out_prompts_never_occur_in_training_rows(tmp_path: Path) -> None:
    write_data(tmp_path, 3000, seed=1)
    train, test = (
        [json.loads(line)["messages"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("train.jsonl", "test.jsonl")
    )
    asked = {messages[0]["content"] for messages in train}
    held_out = {messages[0]["content"] for messages in test}
    assert len(train) == 3000
    assert len(held_out) == len(test) == int(HELD_OUT * (len(prompts(1)[0]) + len(test)))
    assert not asked & held_out
    assert all(check(messages[0]["content"], messages[1]["content"]) for messages in train)


def test_data_are_a_function_of_the_seed() -> None:
    assert list(rows(50, seed=3)) == list(rows(50, seed=3))
    assert list(rows(50, seed=3)) != list(rows(50, seed=4))
    assert prompts(3) == prompts(3)
    assert set(prompts(3)[1]) != set(prompts(4)[1])


def test_the_model_has_a_token_for_every_word_of_the_task(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    write_model(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    known, held_out = prompts(0)
    words = {word for prompt in known + held_out for word in text(prompt).split()}
    words |= {str(number) for number in range(LARGEST_SUM + 1)}
    ids = [tokenizer(word)["input_ids"] for word in sorted(words)]
    assert all(len(i) == 1 and i[0] != tokenizer.unk_token_id for i in ids)
    assert max(i[0] for i in ids) < config.vocab_size
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert special == (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "write"}], add_generation_prompt=True)
    assert tokenizer.decode(rendered["input_ids"]) == "<s> <user> write <assistant>"
