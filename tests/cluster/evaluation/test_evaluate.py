"""Scores have honest errors, prompts are read as training reads them, and what can't be scored is named in one line."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.data.table import load_tokenizer
from cluster.evaluation.evaluate import (
    Question,
    evaluate,
    load_check,
    question_ids,
    read_questions,
    score,
    standard_error,
)
from contracts.errors import UserError
from demo.model import write_model
from learner.config import ModelConfig

USER = {"role": "user", "content": "write 3 numbers with sum 12 ascending"}
ANSWER = {"role": "assistant", "content": "1 2 9"}


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo's tokenizer and a random model for it."""
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("demo-model")
    write_model(folder)
    set_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return str(folder)


def prompts_file(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def broken(prompt: str, response: str) -> float:
    raise KeyError("no such answer")


def test_the_error_is_that_of_the_mean_over_prompts() -> None:
    # Means per prompt 1, 0.5, 0: mean 0.5, sample variance 0.25, so the error is sqrt(0.25 / 3).
    share = standard_error([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert share.mean == pytest.approx(0.5)
    assert share.error == pytest.approx(0.2886751)
    assert str(share) == "0.500 ± 0.289"


def test_more_samples_of_the_same_prompts_do_not_shrink_the_error() -> None:
    few, many = standard_error([[1.0], [0.0]]), standard_error([[1.0] * 100, [0.0] * 100])
    assert few == many
    assert few.error == pytest.approx(math.sqrt(0.5 / 2))


def test_one_prompt_has_no_error_to_speak_of() -> None:
    assert standard_error([[1.0, 0.0]]) == standard_error([[0.5]])


def test_a_check_is_found_by_its_import_path() -> None:
    assert load_check("demo.task:check")("write 3 numbers with sum 12 ascending", "1 2 9") is True


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
def test_a_check_that_cannot_be_imported_is_refused(path: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        load_check(path)
    assert str(refused.value).startswith(f"--check {path}: ")
    assert words in str(refused.value)


def test_a_check_that_fails_is_named_with_its_line_and_the_response() -> None:
    question = Question("p.jsonl:3", "q", None)
    with pytest.raises(UserError) as refused:
        score(broken, "mine:broken", question, "r")
    said = str(refused.value)
    assert said.startswith("--check mine:broken: KeyError: 'no such answer' (")
    assert f"{Path(__file__).name}:" in said
    assert "p.jsonl:3" in said
    with pytest.raises(UserError, match="TypeError"):
        score(lambda _, __: None, "mine:nothing", question, "r")


def test_true_and_false_count_as_one_and_zero() -> None:
    question = Question("p.jsonl:1", USER["content"], None)
    check = load_check("demo.task:check")
    assert [score(check, "", question, response) for response in ("1 2 9", "9 2 1")] == [1.0, 0.0]


def test_a_last_assistant_turn_is_left_out_of_the_prompt(tmp_path: Path) -> None:
    path = prompts_file(
        tmp_path,
        {"messages": [USER, ANSWER]},
        {"messages": [USER]},
        {"prompt": "2 + 2 ="},
        {"messages": [USER, ANSWER, USER]},
    )
    questions = read_questions(path)
    assert [q.messages for q in questions] == [[USER], [USER], None, [USER, ANSWER, USER]]
    assert [q.text for q in questions] == [USER["content"], USER["content"], "2 + 2 =", USER["content"]]
    assert [q.where for q in questions] == [f"{path}:{number}" for number in (1, 2, 3, 4)]


def test_prompts_are_tokenised_as_in_training(demo_model: str, tmp_path: Path) -> None:
    from cluster.config.run_config import DataConfig
    from cluster.data.table import load_table

    rows: list[dict[str, Any]] = [{"messages": [USER, ANSWER]}, {"prompt": USER["content"], "completion": "1 2 9"}]
    path = prompts_file(tmp_path, *rows)
    model = ModelConfig(path=demo_model)
    table, tokenizer, _ = load_table(DataConfig(path=str(path)), model, "sapo")
    assert [question_ids(q, tokenizer) for q in read_questions(path)] == [table[i].prompt.tolist() for i in (0, 1)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, ":2: messages, or prompt as text, is expected; found the keys (none)"),
        ({"question": "q"}, ":2: messages, or prompt as text, is expected; found the keys question"),
        ({"prompt": ["q"]}, ":2: messages, or prompt as text, is expected; found a prompt that is not text"),
        ({"messages": []}, ":2: no message before the response"),
        ({"messages": [ANSWER]}, ":2: no message before the response"),
        ({"messages": "q"}, ":2: messages must be a list of {role, content}, both text"),
        ({"messages": ["q"]}, ":2: messages must be a list of {role, content}, both text"),
        ({"messages": [{"role": "user"}]}, ":2: messages must be a list of {role, content}, both text"),
        ({"messages": [{"role": "user", "content": 3}]}, ":2: messages must be a list of {role, content}, both text"),
        ([1], ":2: an object is expected, found list"),
    ],
)
def test_a_broken_prompt_is_named_by_line(tmp_path: Path, row: object, words: str) -> None:
    path = prompts_file(tmp_path, {"prompt": "fine"}, row)
    with pytest.raises(UserError) as refused:
        read_questions(path)
    assert str(refused.value) == f"--prompts {path}{words}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', ":2: not UTF-8: invalid continuation byte at byte 12 of the line"),
        (b'{"prompt": "a"}\n\n{"prompt"\n', ":3: not JSON: Expecting ':' delimiter; one object a line is expected"),
        (b"", ": no prompt in it"),
        (b"\n \n", ": no prompt in it"),
    ],
)
def test_a_prompts_file_that_is_no_jsonl_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_questions(path)
    assert str(refused.value) == f"--prompts {path}{words}"


def test_a_prompts_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"--prompts {path}: can't be read: {words}"):
            read_questions(path)


def test_conversations_need_a_chat_template(demo_model: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=demo_model))
    tokenizer.chat_template = None
    assert question_ids(Question("p:1", "write", None), tokenizer) == tokenizer("write")["input_ids"]
    with pytest.raises(UserError, match="has no chat template"):
        question_ids(Question("p:1", "write", [USER]), tokenizer)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match=r"--prompts p:1: refused by the chat template \(never\)"):
        question_ids(Question("p:1", "write", [USER]), tokenizer)
    with pytest.raises(UserError, match="--prompts p:1: the prompt is empty"):
        question_ids(Question("p:1", "", None), tokenizer)


def test_what_is_wrong_is_said_before_an_engine_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.run", started)
    prompts = prompts_file(tmp_path, {"prompt": "q"})
    broken_prompts = tmp_path / "none.jsonl"
    for model, path, check, words in (
        (str(tmp_path / "none"), prompts, "demo.task:check", f"model {tmp_path / 'none'}: no such folder"),
        (str(tmp_path), broken_prompts, "demo.task:check", "--prompts"),
        (str(tmp_path), prompts, "demo.task:nothing", "--check"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(model, path, check, samples=1, temperature=1.0)


def test_an_evaluation_needs_no_torch_in_its_own_process() -> None:
    """The parent of the evaluating process starts fast and leaves the GPU alone."""
    import subprocess

    loaded = "[m for m in ('torch', 'transformers', 'ray') if m in sys.modules]"
    code = f"import sys, cluster.evaluation.evaluate, cluster.cli.app; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    lengths = []
    for question in read_questions(prompts):
        ids = torch.tensor([question_ids(question, tokenizer)])
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        response = tokenizer.decode(said[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
        lengths.append([float(len(response.split()))])
    assert result.greedy == standard_error(lengths)


@pytest.mark.slow
def test_a_model_without_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    write_model(tmp_path / "empty")
    prompts = prompts_file(tmp_path, {"prompt": "write"})
    with pytest.raises(UserError) as refused:
        evaluate(str(tmp_path / "empty"), prompts, "demo.task:check", samples=1, temperature=1.0)
    assert str(refused.value).startswith(f"model {tmp_path / 'empty'}: vLLM can't load it: ")
    assert "\n" not in str(refused.value)
