"""Pairs as a person reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from cluster.reports.samples import UNREADABLE, consecutive_texts, readable
from contracts.pair import PreferencePair, TokenIds, as_token_ids


def test_a_sample_marks_the_segment_and_drops_a_dropped_suffix() -> None:
    pair = PreferencePair(
        prompt=as_token_ids([1]),
        chosen=as_token_ids([5, 10, 6, 7]),
        start=1,
        end=2,
        replacement=as_token_ids([11]),
        suffix_kept=False,
    )
    shown = readable(pair, lambda ids: " ".join(map(str, ids.tolist())), step=3)
    assert shown["chosen"] == "5⟦ 10⟧ 6 7"
    assert shown["rejected"] == "5⟦ 11⟧"
    assert json.loads(json.dumps(shown))["replacement_logprob"] is None


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """A tokenizer of bytes alone: every character beyond ASCII has several tokens."""
    return ByT5Tokenizer()


TEXTS = ("naïve", "日本語です", "🙂🙃", "a é b", "ascii only", "é")


@pytest.mark.parametrize("text", TEXTS)
def test_a_cut_within_a_character_shows_no_broken_one_and_loses_none(byte_level: Any, text: str) -> None:
    ids = as_token_ids(byte_level(text, add_special_tokens=False)["input_ids"])
    for start in range(len(ids) + 1):
        for end in range(start, len(ids) + 1):
            parts = consecutive_texts((ids[:start], ids[start:end], ids[end:]), byte_level.decode)
            assert "".join(parts) == text
            assert not any(UNREADABLE in part for part in parts)


def test_a_sample_of_a_cut_within_a_character_can_be_read(byte_level: Any) -> None:
    def ids(text: str) -> TokenIds:
        return as_token_ids(byte_level(text, add_special_tokens=False)["input_ids"])

    chosen = ids("né oui")  # n, two bytes of é, …
    pair = PreferencePair(ids("日")[1:], chosen, 2, 5, ids("é non")[1:], suffix_kept=True)
    shown = readable(pair, byte_level.decode, step=1)
    assert shown["prompt"] == "", "the rest of a character that truncation has cut"
    assert shown["chosen"] == "n⟦é o⟧ui"
    assert shown["rejected"] == "n⟦é non⟧ui"
    cut_off = PreferencePair(ids("q"), chosen, 2, 5, ids("é日")[1:3], suffix_kept=False)
    assert readable(cut_off, byte_level.decode, step=1)["rejected"] == "n⟦é⟧", "it ended within a character"


def test_a_space_at_the_beginning_of_a_part_is_kept() -> None:
    """SentencePiece's tokenizers drop it where a text begins."""
    words = {5: "▁one", 6: "▁two", 7: "▁three"}
    parts = [as_token_ids([5]), as_token_ids([6]), as_token_ids([7])]

    def decode(ids: TokenIds) -> str:
        return "".join(words[i] for i in ids.tolist()).replace("▁", " ").removeprefix(" ")

    assert consecutive_texts(parts, decode) == ["one", " two", " three"]


def test_a_tokenizer_that_rewrites_what_is_before_shows_the_parts_apart() -> None:
    def decode(ids: TokenIds) -> str:
        return "+".join(map(str, reversed(ids.tolist())))

    assert consecutive_texts([as_token_ids([1, 2]), as_token_ids([3])], decode) == ["2+1", "3"]


def test_a_sample_says_how_old_its_weights_were_and_how_much_changed() -> None:
    pair = PreferencePair(
        prompt=as_token_ids([1]),
        chosen=as_token_ids([5, 10, 6, 7]),
        start=1,
        end=3,
        replacement=as_token_ids([10, 8, 9, 9]),
        suffix_kept=True,
        versions=as_token_ids([4, 4, 5, 5]),
    )
    shown = readable(pair, lambda ids: "", step=7)
    assert shown["age"] == 2  # the batch of step 7 is drawn when 6 steps are done
    assert shown["edit_fraction"] == 0.75
