"""What a judge is asked about two responses, and what is read out of its answer."""

from __future__ import annotations

import re
from enum import StrEnum


class Verdict(StrEnum):
    """Which of two responses a judge prefers, by their places in the question."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    UNREADABLE = "unreadable"
    """The answer names none."""


MARKS = {"[[A]]": Verdict.FIRST, "[[B]]": Verdict.SECOND, "[[C]]": Verdict.TIE}
"""Those of MT-Bench's judge (Zheng et al., arXiv 2306.05685)."""

QUESTION = """Compare two responses to the instruction below. Judge how well each follows the instruction and helps \
the person who gave it: correctness, relevance, depth and clarity. The order of the responses and their lengths must \
not count.

[Instruction]
{instruction}

[Response A]
{first}
[End of response A]

[Response B]
{second}
[End of response B]

Explain in short, then give the verdict in this form on a line of its own: [[A]] if response A is better, [[B]] if \
response B is better, [[C]] if they are equally good."""


def question(instruction: str, first: str, second: str) -> str:
    """The text of the request. What the three hold is never taken for a place of the template."""
    return QUESTION.format(instruction=instruction, first=first, second=second)


def read_verdict(answer: str) -> Verdict:
    """The last mark counts: an explanation may speak of others before."""
    found = re.findall(r"\[\[[ABC]\]\]", answer)
    return MARKS[found[-1]] if found else Verdict.UNREADABLE
