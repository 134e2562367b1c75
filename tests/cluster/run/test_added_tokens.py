"""A base model gets chat tokens by a supervised run; engines and learner of a SAPO run start from its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config.loading import validate_config
from cluster.config.run_config import RunConfig
from cluster.data.tokenizer import load_tokenizer
from cluster.run.train import train
from cluster.storage.recording import read_batches
from learner.config import ModelConfig
from support.chat_styles import CHATML, STYLES, write_tokenizer
from support.dataset_rows import conversation, jsonl
from support.models import save_llama

CHAT_TOKENS = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model without chat tokens: its embeddings have a row for each token of its tokenizer, 283, and no more."""
    write_tokenizer(tmp_path / "base", STYLES["chatml as plain text"])
    save_llama(tmp_path / "base", tied=False, vocab_size=283, eos_token_id=0)
    (tmp_path / "chatml.jinja").write_text(CHATML)
    jsonl(
        tmp_path / "d.jsonl", [{"messages": conversation(f"{i}?", "the number is the answer " * 2)} for i in range(24)]
    )
    return tmp_path


def run_config(folder: Path, name: str, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "name": name,
        "output_dir": str(folder / "runs"),
        "model": {"path": str(folder / "base"), "dtype": "float32"},
        "data": {"path": str(folder / "d.jsonl"), "max_length": 96, "max_prompt_length": 64},
        "optimizer": {"lr": 1e-2, "warmup_steps": 0},
        "learner": {"ranks": 2, "zero_stage": 3, "batch_size": 8, "tokens_per_batch": 1024},
        "objective": {"name": "sft"},
        "reference": {"mode": "none"},
    }
    for section, change in changes.items():
        values[section] = (values.get(section, {}) | change) if isinstance(change, dict) else change
    return validate_config(values, "test")


def supervised(folder: Path, name: str, steps: int) -> RunConfig:
    model = {"add_tokens": CHAT_TOKENS}
    template = {"chat_template": str(folder / "chatml.jinja")}
    learner = {"steps": steps} if steps else {"steps": 0, "ranks": 1, "zero_stage": 0}
    return run_config(folder, name, method="sft", model=model, data=template, learner=learner)


def embeddings(folder: Path) -> tuple[Any, Any]:
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    return weights["model.embed_tokens.weight"], weights["lm_head.weight"]


@pytest.mark.slow
def test_a_base_model_with_added_chat_tokens_is_trained_and_serves_as_a_start(ray_local: None, base: Path) -> None:
    start = train(supervised(base, "start", 0))
    trained = train(supervised(base, "trained", 3))
    originals = embeddings(base / "base")
    for old, untouched, new in zip(originals, embeddings(start.policy), embeddings(trained.policy), strict=True):
        assert len(untouched) == len(new) == 320, "285 tokens, in whole blocks of 64"
        assert untouched[:283].equal(old), "no step was made"
        assert not untouched[283].equal(untouched[284])
        assert (untouched[283:] - old.mean(0)).abs().max() < 0.1 * old.std()
        moved = (new - untouched).abs().amax(1)
        assert moved[284] > 1e-3, "<|im_end|> is trained"

    for result in (start, trained):
        for folder in (result.policy, result.ema):
            tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
            assert tokenizer.convert_tokens_to_ids(CHAT_TOKENS) == [283, 284]
            assert tokenizer.chat_template == CHATML
            assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 284]
            assert json.loads((folder / "config.json").read_text())["vocab_size"] == 320
    assert "a response ends at </s> (tokenizer, generation_config), <|im_end|> (chat template)" in (
        trained.folder / "run.log"
    ).read_text().replace("\n", " ")

    sapo = run_config(
        base,
        "sapo",
        model={"path": str(start.policy)},
        objective={"name": "orpo"},
        learner={"steps": 2, "ranks": 1, "zero_stage": 2},
        generation={"segment_length": 4, "temperature": 1.0, "top_k": -1, "top_p": 1.0},
        buffer={"capacity": 32},
        weights={"parity_every": 1},
        logging={"record_pairs": True},
    )
    result = train(sapo)
    pairs = [pair for batch in read_batches(result.folder / "pairs.arrow") for pair in batch]
    assert len(pairs) == 16
    for pair in pairs:
        assert pair.chosen[-1] == 284
        assert not {0, 284} & set(pair.chosen[:-1].tolist())
        assert pair.ended == (int(pair.replacement[-1]) in (0, 284))
    assert json.loads((result.ema / "generation_config.json").read_text())["eos_token_id"] == [0, 284]
