"""Supervised datasets whose lengths spread as those of conversations do, and the demo's model with room for them.

Only the lengths matter: the words are random and so are the weights. Prompts and responses are log-normal in tokens: a
few rows are several times as long as most, as in real data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import with_random_weights
from demo.model import WORDS, write_model
from demo.task import LARGEST_SUM

ROWS, SHORTEST, TURNS = 2000, 16, 24
"""Rows, tokens of the shortest prompt or response, and room for the template's marks around them."""


@dataclass(frozen=True)
class Lengths:
    """In tokens."""

    prompt: float
    """Median; so is ``response``."""
    response: float
    sigma: float
    """Of the logarithm."""
    longest_prompt: int
    longest: int
    segment: int


SHAPES = {
    "conversations": Lengths(120, 120, 0.8, longest_prompt=512, longest=1024, segment=64),
    # The limits of the released recipes, and data as long as theirs: Capybara's card says over 1,000 tokens and three
    # turns or more a conversation; the last response is what is trained on.
    "recipe": Lengths(600, 300, 0.6, longest_prompt=1792, longest=2048, segment=256),
}


def write(shape: str, folder: Path) -> str:
    """Write rows, model and configuration into ``folder``; returns the configuration's path."""
    lengths = SHAPES[shape]
    write_rows(lengths, ROWS, folder / "rows.jsonl")
    model = folder / "model"
    write_model(model)
    with_random_weights(model, max_position_embeddings=lengths.longest)
    path = folder / f"{shape}.yaml"
    path.write_text(json.dumps(_config(lengths, model, folder / "rows.jsonl")))  # which is YAML, too
    return str(path)


def write_rows(lengths: Lengths, count: int, path: Path) -> None:
    """``count`` conversations of the demo's words."""
    draw = np.random.default_rng(0)
    words = np.array(WORDS + [str(n) for n in range(LARGEST_SUM + 1)])
    longest_prompt, longest = lengths.longest_prompt - TURNS, lengths.longest - TURNS
    with open(path, "w") as out:
        for _ in range(count):
            prompt, response = (
                int(np.exp(draw.normal(np.log(median), lengths.sigma))) for median in (lengths.prompt, lengths.response)
            )
            prompt = min(max(prompt, SHORTEST), longest_prompt)
            response = min(max(response, SHORTEST), longest - prompt)
            turns = [(role, " ".join(draw.choice(words, n))) for role, n in (("user", prompt), ("assistant", response))]
            out.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")


def _config(lengths: Lengths, model: Path, rows: Path) -> dict[str, Any]:
    return {
        "method": "sapo",
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"path": str(rows), "max_length": lengths.longest, "max_prompt_length": lengths.longest_prompt},
        "objective": {"name": "dpo", "beta": 0.1},
        "reference": {"mode": "initial"},
        "generation": {"segment_length": lengths.segment, "max_concurrent_requests": 128},
        "buffer": {"capacity": 2000, "shards": 2},
        "optimizer": {"lr": 1e-5, "schedule": "constant"},
        "learner": {"ranks": 2, "cpus_per_rank": 0.5, "zero_stage": 2, "batch_size": 16, "tokens_per_batch": 8192},
    }
