"""The demo's task: write n numbers with a given sum. Many answers are right, and a program checks them.

A prompt reads ``write 4 numbers with sum 23 ascending`` (or ``in any order``); a response is n numbers from 1 to 15.
Sampling makes real mistakes: the sum has to come out right in the last number, the order and the count must hold.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LARGEST = 15
"""Numbers are 1 to this."""
COUNTS = range(3, 8)
LARGEST_SUM = 40
ORDERS = ("ascending", "in any order")
HELD_OUT = 0.25
"""Share of the prompts (n, sum, order) that no training row has."""

Prompt = tuple[int, int, str]
"""(n, sum, order)"""


def prompts(seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """All prompts, split into those for training and those held out."""
    everything = [
        (n, total, order)
        for n in COUNTS
        for total in range(2 * n, min(LARGEST_SUM, LARGEST * n - n) + 1)
        for order in ORDERS
    ]
    random.Random(f"split-{seed}").shuffle(everything)
    held_out = int(HELD_OUT * len(everything))
    return everything[held_out:], everything[:held_out]


def text(prompt: Prompt) -> str:
    n, total, order = prompt
    return f"write {n} numbers with sum {total} {order}"


def answer(prompt: Prompt, draw: random.Random) -> str:
    """A right answer; all sequences of n numbers with the sum are equally likely, before they are put in order."""
    n, total, order = prompt
    numbers: list[int] = []
    for left in range(n - 1, -1, -1):
        rest = total - sum(numbers)
        choices = range(1, LARGEST + 1)
        numbers += draw.choices(choices, [_sequences(left, rest - number) for number in choices])
    if order == "ascending":
        numbers.sort()
    return " ".join(map(str, numbers))


@cache
def _sequences(n: int, total: int) -> int:
    """How many sequences of n numbers from 1 to LARGEST have this sum."""
    if n == 0:
        return int(total == 0)
    return sum(_sequences(n - 1, total - number) for number in range(1, min(LARGEST, total) + 1))


def rows(count: int, seed: int) -> Iterator[dict[str, list[dict[str, str]]]]:
    """``count`` training conversations."""
    known, _ = prompts(seed)
    draw = random.Random(f"rows-{seed}")
    for _ in range(count):
        prompt = draw.choice(known)
        yield {
            "messages": [
                {"role": "user", "content": text(prompt)},
                {"role": "assistant", "content": answer(prompt, draw)},
            ]
        }


def check(prompt: str, response: str) -> bool:
    """Whether ``response`` answers ``prompt``: count, range, sum and order."""
    words = prompt.split()
    n, total, ascending = int(words[1]), int(words[5]), words[6] == "ascending"
    try:
        numbers = [int(word) for word in response.split()]
    except ValueError:
        return False
    in_range = all(1 <= number <= LARGEST for number in numbers)
    in_order = not ascending or numbers == sorted(numbers)
    return len(numbers) == n and in_range and sum(numbers) == total and in_order


def write_data(folder: Path, train_rows: int, seed: int) -> None:
    """train.jsonl with conversations, test.jsonl with held-out prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows(train_rows, seed))
    _, held_out = prompts(seed)
    with (folder / "test.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"messages": [{"role": "user", "content": text(p)}]}) + "\n" for p in held_out)
