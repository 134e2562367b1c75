"""What crosses the border to the engine's process comes back equal."""

from __future__ import annotations

import math

import pytest

from cluster.evaluation.messages import (
    Answer,
    Evaluation,
    EvaluationJob,
    Rejection,
    Share,
    as_json,
    read_answer,
    read_job,
)

JOB = EvaluationJob("m", "p.jsonl", "m:f", samples=4, temperature=0.7, max_tokens=16, seed=0)


def test_a_job_comes_back_equal_on_one_line() -> None:
    assert read_job(as_json(JOB)) == JOB
    assert "\n" not in as_json(JOB)


@pytest.mark.parametrize(
    "answer", [Evaluation(Share(0.5, 0.1), Share(0.25, 0.05), prompts=10, samples=4), Rejection("no\nsuch – model")]
)
def test_an_answer_comes_back_equal_on_one_line(answer: Answer) -> None:
    assert read_answer(as_json(answer)) == answer
    assert "\n" not in as_json(answer)


def test_a_score_that_is_no_number_comes_back() -> None:
    """A check may return it."""
    answer = read_answer(as_json(Evaluation(Share(math.nan, math.nan), Share(1.0, math.inf), 1, 1)))
    assert isinstance(answer, Evaluation)
    assert math.isnan(answer.greedy.mean)
    assert answer.sampled == Share(1.0, math.inf)


@pytest.mark.parametrize("text", ["", "{}", "done", '{"greedy": {}}', as_json(JOB)])
def test_what_is_no_answer_is_not_taken_for_one(text: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        read_answer(text)
