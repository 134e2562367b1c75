"""Scores have honest errors, and a check that fails is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from cluster.evaluation.checks import mean_score, score
from cluster.evaluation.questions import Question
from contracts.errors import UserError
from contracts.imports import import_function
from demo.task import check
from support.prompts import USER


def broken(prompt: str, response: str) -> float:
    raise KeyError("no such answer")


def silent(prompt: str, response: str) -> Any:
    return None


def test_the_error_is_that_of_the_mean_over_prompts() -> None:
    # Means per prompt 1, 0.5, 0: mean 0.5, sample variance 0.25, so the error is sqrt(0.25 / 3).
    share = mean_score([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert share.mean == pytest.approx(0.5)
    assert share.error == pytest.approx(0.2886751)
    assert str(share) == "0.500 ± 0.289"


def test_more_samples_of_the_same_prompts_do_not_shrink_the_error() -> None:
    few, many = mean_score([[1.0], [0.0]]), mean_score([[1.0] * 100, [0.0] * 100])
    assert few == many
    assert few.error == pytest.approx(math.sqrt(0.5 / 2))


def test_one_prompt_has_no_error_to_speak_of() -> None:
    assert mean_score([[1.0, 0.0]]) == mean_score([[0.5]])


def test_a_check_that_fails_is_named_with_its_line_and_the_response() -> None:
    question = Question("p.jsonl:3", "q", None)
    with pytest.raises(UserError) as caught:
        score(broken, "mine:broken", question, "r")
    said = str(caught.value)
    assert said.startswith("--check mine:broken: KeyError: 'no such answer' (")
    assert f"{Path(__file__).name}:" in said
    assert "p.jsonl:3" in said
    with pytest.raises(UserError, match="TypeError"):
        score(silent, "mine:nothing", question, "r")


def test_a_check_is_found_by_its_import_path() -> None:
    assert import_function("demo.task:check", "--check") is check


def test_true_and_false_count_as_one_and_zero() -> None:
    question = Question("p.jsonl:1", USER["content"], None)
    assert [score(check, "", question, response) for response in ("1 2 9", "9 2 1")] == [1.0, 0.0]
