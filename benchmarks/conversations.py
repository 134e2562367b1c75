"""A supervised dataset whose lengths spread as those of conversations do, and the demo's model with room for it.

Only the lengths matter: the words are random and so are the weights. Prompts and responses are log-normal in tokens
(median 120, sigma 0.8, 16 to 500 each): a few rows are several times as long as most, as in real data.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.models import with_random_weights
from demo.model import WORDS, write_model
from demo.task import LARGEST_SUM

ROWS, LONGEST, SEGMENT = 2000, 500, 64

CONFIG = {
    "method": "sapo",
    "data": {"max_length": 2 * LONGEST + 24, "max_prompt_length": LONGEST + 12},
    "objective": {"name": "dpo", "beta": 0.1},
    "reference": {"mode": "initial"},
    "generation": {"segment_length": SEGMENT, "max_concurrent_requests": 128},
    "buffer": {"capacity": 2000, "shards": 2},
    "optimizer": {"lr": 1e-5, "schedule": "constant"},
    "learner": {"ranks": 2, "cpus_per_rank": 0.5, "zero_stage": 2, "batch_size": 16, "tokens_per_batch": 8192},
}


def write(folder: Path) -> str:
    """Write rows, model and configuration into ``folder``; returns the configuration's path."""
    draw = np.random.default_rng(0)
    words = np.array(WORDS + [str(n) for n in range(LARGEST_SUM + 1)])
    lengths = np.exp(draw.normal(np.log(120), 0.8, (ROWS, 2))).clip(16, LONGEST).astype(int)
    with open(folder / "rows.jsonl", "w") as out:
        for prompt, response in lengths:
            turns = [(role, " ".join(draw.choice(words, n))) for role, n in (("user", prompt), ("assistant", response))]
            out.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    model = folder / "model"
    write_model(model)
    with_random_weights(model, max_position_embeddings=2 * LONGEST + 24)
    run = CONFIG | {
        "model": {"path": str(model), "dtype": "float32"},
        "data": CONFIG["data"] | {"path": str(folder / "rows.jsonl")},
    }
    path = folder / "conversations.yaml"
    path.write_text(json.dumps(run))  # which is YAML, too
    return str(path)
