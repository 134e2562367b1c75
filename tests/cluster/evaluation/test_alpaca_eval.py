"""AlpacaEval's files are written as AlpacaEval reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.evaluation.alpaca_eval import Generation, read_generations, write_generations
from contracts.errors import UserError


def test_the_file_is_an_array_of_objects_with_alpaca_evals_keys(tmp_path: Path) -> None:
    rows = [Generation("helpful_base", "Wer?", "Ich – 我", "mine"), Generation("", "i", "", "mine")]
    write_generations(tmp_path / "g.json", rows)
    assert json.loads((tmp_path / "g.json").read_text()) == [
        {"dataset": "helpful_base", "instruction": "Wer?", "output": "Ich – 我", "generator": "mine"},
        {"dataset": "", "instruction": "i", "output": "", "generator": "mine"},
    ]
    assert read_generations(tmp_path / "g.json") == rows


def test_files_of_others_have_fewer_keys_or_a_line_for_each(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text('{"instruction": "i", "output": "o", "datasplit": "eval"}\n')
    assert read_generations(tmp_path / "g.jsonl") == [Generation("", "i", "o", "g")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "nothing in it"),
        ('[{"instruction": "i"}]', ":1: output as text is expected; found the keys instruction"),
        ('{"instruction": 1, "output": ""}\n', ":1: instruction as text is expected"),
    ],
)
def test_what_is_no_generation_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_generations(tmp_path / "g.json")
