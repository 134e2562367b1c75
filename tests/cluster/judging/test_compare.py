"""Every prompt is judged in both orders; ties, orders that disagree and what is left out are counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.evaluation.alpaca_eval import Generation
from cluster.judging.compare import comparisons, pair, summarise
from cluster.judging.judge import Refusal
from cluster.judging.verdict import Verdict, question, read_verdict
from contracts.errors import UserError


def generations(outputs: dict[str, str], name: str = "m") -> list[Generation]:
    return [Generation("", instruction, output, name) for instruction, output in outputs.items()]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(Verdict), st.sampled_from(Verdict)), min_size=1, max_size=20))
def test_swapping_the_files_mirrors_the_result(verdicts: list[tuple[Verdict, Verdict]]) -> None:
    outputs = {str(i): "r" * (i + 1) for i in range(len(verdicts))}
    others = {str(i): "r" * 7 for i in range(len(verdicts))}
    one, other = pair(generations(outputs), generations(others)), pair(generations(others), generations(outputs))
    first, second = [a for a, _ in verdicts], [b for _, b in verdicts]
    try:
        result = summarise(one, [*first, *second])
    except UserError:
        assert all(Verdict.UNREADABLE in both for both in verdicts)
        return
    mirrored = summarise(other, [*second, *first])  # the same questions with the same answers
    assert comparisons(one) == comparisons(other)[len(verdicts) :] + comparisons(other)[: len(verdicts)]
    assert (result.wins, result.ties, result.losses) == (mirrored.losses, mirrored.ties, mirrored.wins)
    assert result.win_rate.mean == pytest.approx(1 - mirrored.win_rate.mean)
    assert result.length_controlled.mean == pytest.approx(1 - mirrored.length_controlled.mean, abs=1e-6)
    assert result.first_place == pytest.approx(mirrored.first_place)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([Verdict.FIRST, Verdict.SECOND, Verdict.TIE]), min_size=1, max_size=20))
def test_a_model_against_itself_is_half_whatever_place_the_judge_likes(verdicts: list[Verdict]) -> None:
    same = generations({str(i): "r" for i in range(len(verdicts))})
    result = summarise(pair(same, same), [*verdicts, *verdicts])  # equal questions have equal answers
    assert result.win_rate.mean == result.length_controlled.mean == 0.5
    assert (result.wins, result.ties, result.losses) == (0, len(verdicts), 0)


def test_points_are_halved_where_the_orders_disagree() -> None:
    both = pair(generations(dict.fromkeys("abcd", "r")), generations(dict.fromkeys("abcd", "s")))
    first = [Verdict.FIRST, Verdict.FIRST, Verdict.TIE, Verdict.SECOND]
    result = summarise(both, [*first, Verdict.SECOND, Verdict.FIRST, Verdict.SECOND, Verdict.FIRST])
    assert result.win_rate.mean == pytest.approx((1 + 0.5 + 0.75 + 0) / 4)
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    assert result.first_place == pytest.approx((1 + 1 + 0.5 + 0 + 0 + 1 + 0 + 1) / 8)


def test_a_prompt_without_a_verdict_in_each_order_is_left_out_and_counted() -> None:
    both = pair(generations(dict.fromkeys("abc", "r")), generations(dict.fromkeys("abcd", "s")))
    result = summarise(both, [Verdict.FIRST] * 3 + [Verdict.SECOND, Verdict.UNREADABLE, Refusal("too long")])
    assert (result.prompts, result.left_out, result.unpaired) == (1, 2, 1)
    assert result.win_rate.mean == 1.0
    with pytest.raises(UserError, match="no readable verdict"):
        summarise(both, [Verdict.UNREADABLE] * 6)


def test_responses_are_paired_by_instruction_and_repeated_ones_in_order() -> None:
    ours = [Generation("", i, o, "m") for i, o in (("x", "1"), ("y", "2"), ("x", "3"))]
    theirs = [Generation("", i, o, "n") for i, o in (("x", "a"), ("x", "b"), ("z", "c"))]
    found = pair(ours, theirs)
    assert [(a.output, b.output) for a, b in zip(found.ours, found.theirs, strict=True)] == [("1", "a"), ("3", "b")]
    assert found.unpaired == 2
    with pytest.raises(UserError, match="no instruction in common"):
        pair(ours[1:2], theirs)


def test_the_last_mark_of_an_answer_is_its_verdict() -> None:
    assert read_verdict("Not [[A]], but\n[[B]]") is Verdict.SECOND
    assert [read_verdict(text) for text in ("[[A]]", "[[C]].")] == [Verdict.FIRST, Verdict.TIE]
    assert read_verdict("A is better") is read_verdict("") is Verdict.UNREADABLE


def test_braces_in_responses_stay_as_they_are() -> None:
    text = question("write {first}", "{second}", "{} {0}")
    assert "write {first}" in text
    assert "[Response A]\n{second}\n" in text
    assert "[Response B]\n{} {0}\n" in text
