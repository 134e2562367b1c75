"""Scores responses with a check of the user's own."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence

from cluster.evaluation.messages import Share
from cluster.evaluation.questions import Question
from contracts.errors import UserError, named

Check = Callable[[str, str], float]
"""From (text of the prompt, response) to a score; True and False count as 1 and 0."""


def score(check: Check, path: str, question: Question, response: str) -> float:
    """What the check says of one response.

    Args:
        path: ``module:function`` of the check, for the message.

    Raises:
        UserError: it fails, or returns no number.
    """
    try:
        return float(check(question.text, response))
    except Exception as error:  # the check is the user's own code and may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"--check {path}: {named(error)} ({frame.filename}:{frame.lineno}), on the prompt of "
            f"{question.where} and the response {response[:80]!r}"
        ) from error


def mean_score(scores: Sequence[Sequence[float]]) -> Share:
    """Mean of all scores [prompts][samples].

    The standard error is that of the mean over prompts: the samples of one prompt are not independent.
    """
    means = [sum(row) / len(row) for row in scores]
    mean = sum(means) / len(means)
    variance = sum((m - mean) ** 2 for m in means) / max(1, len(means) - 1)
    return Share(mean, math.sqrt(variance / len(means)))
