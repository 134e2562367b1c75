"""A model is scored by what it says; what can't be evaluated is named in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.data.ends import end_tokens
from cluster.data.tokenizer import load_tokenizer
from cluster.data.tokens import Tokenisation
from cluster.evaluation.checks import mean_score
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.questions import question_ids, read_questions
from contracts.errors import UserError
from demo.model import write_model
from learner.config import ModelConfig
from support.checkpoints import copy_of
from support.prompts import ANSWER, USER, prompts_file

CHECK = "demo.task:check"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module:check", "No module named 'no_such_module'; expected an importable module:function"),
        ("demo.task:nothing", "has no attribute 'nothing'"),
        ("demo.task", "expected an importable module:function"),
        ("", "expected an importable module:function"),
        ("demo.task:LARGEST", "LARGEST is a int, expected a function"),
    ],
)
def test_a_check_that_cannot_be_imported_is_rejected(tmp_path: Path, path: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(str(tmp_path), prompts_file(tmp_path, {"prompt": "q"}), path, samples=1, temperature=1.0)
    assert str(caught.value).startswith(f"--check {path}: ")
    assert words in str(caught.value)


def test_what_is_wrong_is_said_before_an_engine_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.run", started)
    prompts = prompts_file(tmp_path, {"prompt": "q"})
    broken_prompts = tmp_path / "none.jsonl"
    for model, path, check, words in (
        (str(tmp_path / "none"), prompts, CHECK, f"model {tmp_path / 'none'}: no such folder"),
        (str(tmp_path), broken_prompts, CHECK, "--prompts"),
        (str(tmp_path), prompts, "demo.task:nothing", "--check"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(model, path, check, samples=1, temperature=1.0)


def test_an_evaluation_needs_no_torch_in_its_own_process() -> None:
    """The parent of the evaluating process starts fast and leaves the GPU alone."""
    loaded = "[m for m in ('torch', 'transformers', 'ray') if m in sys.modules]"
    code = f"import sys, cluster.evaluation.evaluate, cluster.cli.app; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_that_dies_is_a_bug_and_shows_the_end_of_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for out in ("", "loading\n", '{"greedy": 1}\n'):
        died = subprocess.CompletedProcess([], returncode=-9, stdout=out, stderr="out of memory")
        monkeypatch.setattr("subprocess.run", lambda *_, died=died, **__: died)
        with pytest.raises(RuntimeError, match="failed with status -9:\nout of memory"):
            evaluate(str(tmp_path), prompts_file(tmp_path, {"prompt": "q"}), CHECK, samples=1, temperature=1.0)


@pytest.mark.slow
def test_a_model_is_scored_by_what_it_says_greedily_and_sampled(
    demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    (tmp_path / "lengths.py").write_text("def length(prompt, response):\n    return len(response.split())\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    prompts = prompts_file(tmp_path, {"messages": [USER, ANSWER]}, {"prompt": "write 3 numbers"})
    result = evaluate(demo_model, prompts, "lengths:length", samples=3, temperature=1.0, max_tokens=6)
    assert (result.prompts, result.samples) == (2, 3)
    assert 0 < result.sampled.mean <= 6

    tokenizer = load_tokenizer(ModelConfig(path=demo_model))
    model: Any = AutoModelForCausalLM.from_pretrained(demo_model)
    lengths = []
    for question in read_questions(prompts):
        ids = torch.tensor([question_ids(question, Tokenisation(tokenizer, end_tokens(tokenizer)))])
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        response = str(tokenizer.decode(said[0, ids.shape[1] :].tolist(), skip_special_tokens=True))
        lengths.append([float(len(response.split()))])
    assert result.greedy == mean_score(lengths)


@pytest.mark.slow
def test_a_model_without_weights_is_rejected_in_one_line(tmp_path: Path) -> None:
    write_model(tmp_path / "empty")
    prompts = prompts_file(tmp_path, {"prompt": "write"})
    with pytest.raises(UserError) as caught:
        evaluate(str(tmp_path / "empty"), prompts, CHECK, samples=1, temperature=1.0)
    assert str(caught.value).startswith(f"model {tmp_path / 'empty'}: vLLM can't load it: ")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_answer_ends_at_what_the_generation_config_lists(
    demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(demo_model)
    tokenizer = load_tokenizer(ModelConfig(path=demo_model))
    prompts = prompts_file(tmp_path, {"messages": [USER, ANSWER]})
    ids = torch.tensor([question_ids(read_questions(prompts)[0], Tokenisation(tokenizer, end_tokens(tokenizer)))])
    said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)[0]
    words = said[ids.shape[1] :].tolist()
    assert 2 not in words

    shutil.copytree(demo_model, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, words[-1]]}))
    (tmp_path / "lengths.py").write_text("def length(prompt, response):\n    return len(response.split())\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    result = evaluate(str(tmp_path / "model"), prompts, "lengths:length", samples=1, temperature=1.0, max_tokens=6)
    before = str(tokenizer.decode(words[: words.index(words[-1])], skip_special_tokens=True))
    assert result.greedy.mean == len(before.split()), "the end is no part of the answer"


@pytest.mark.slow
def test_a_model_of_many_positions_answers_short_and_long_prompts_on_cpu(
    demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM on CPU refuses an engine for 128 k positions whose prompts may not be cut."""
    model = copy_of(demo_model, tmp_path / "m", max_position_embeddings=131_072)
    (tmp_path / "questions.py").write_text("def asked(prompt, response):\n    return len(prompt.split())\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    prompts = prompts_file(tmp_path, {"prompt": "write"}, {"prompt": " ".join(["write"] * 9000)})
    result = evaluate(str(model), prompts, "questions:asked", samples=2, temperature=1.0, max_tokens=4)
    assert result.greedy.mean == result.sampled.mean == 4500.5
