"""Figures of lm-evaluation-harness arrive as it has them; tasks may be files without network."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path

import pytest

from cluster.evaluation.harness import Notes, figures
from cluster.evaluation.messages import Figure
from cluster.evaluation.tasks import score_on_tasks
from contracts.errors import UserError
from support.ifeval import write_responses

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: sapo[eval]")

CHOICES = """task: local_choices
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: question
doc_to_target: right
doc_to_choice: choices
metric_list: [{{metric: acc}}]
"""


def test_a_figure_has_its_error_and_the_number_of_its_questions() -> None:
    results = {
        "results": {
            "ifeval": {
                "alias": "ifeval",
                "sample_len": 541,
                "prompt_level_strict_acc,none": 0.5,
                "prompt_level_strict_acc_stderr,none": 0.02,
                "inst_level_strict_acc,none": 0.6,
                "inst_level_strict_acc_stderr,none": "N/A",
            },
            "gsm8k": {"exact_match,strict-match": 1, "exact_match_stderr,strict-match": 0.0},
            "group": {"acc,none": 0.25, "acc_stderr,none": 0.1},
        },
        "n-samples": {"ifeval": {"original": 541, "effective": 541}},
    }
    assert figures(results) == {
        "ifeval/prompt_level_strict_acc": Figure(0.5, 0.02, 541),
        "ifeval/inst_level_strict_acc": Figure(0.6, None, 541),
        "gsm8k/exact_match,strict-match": Figure(1.0, 0.0, None),
        "group/acc": Figure(0.25, 0.1, None),
    }


def test_a_warning_of_the_harness_is_noted_once_and_counted() -> None:
    notes, log = Notes(), logging.getLogger("harness-test")
    log.addHandler(notes)
    for length in (9, 8):
        log.warning("Context length %s exceeds\nthe limit", length)
    log.warning("another")
    log.info("nothing")
    assert notes.lines == ["Context length 9 exceeds the limit (2 times)", "another"]


def test_a_harness_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.evaluation.tasks.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'sapo\[eval\]'"):
        score_on_tasks(str(tmp_path), ["ifeval"])


@needs_harness
@pytest.mark.slow
def test_a_model_is_scored_on_local_tasks_by_its_own_likelihoods(demo_model: str, tmp_path: Path) -> None:
    """Without network, and against transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"write {n} numbers", "choices": ["1", "2", "3"], "right": n % 3} for n in range(9)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choices.yaml").write_text(CHOICES.format(data=folder / "d.jsonl"))
    scores = score_on_tasks(demo_model, [str(folder)], chat_template=False)

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    right = 0
    for row in rows:
        ids = torch.tensor([tokenizer(row["question"], add_special_tokens=True)["input_ids"]])
        logits = model(ids).logits[0, -1]
        words = [tokenizer(choice, add_special_tokens=False)["input_ids"][0] for choice in ["1", "2", "3"]]
        right += int(torch.argmax(logits[words])) == row["right"]
    assert scores.figures["local_choices/acc"].mean == pytest.approx(right / 9)
    assert scores.figures["local_choices/acc"].error is not None
    assert not scores.chat_template


@pytest.mark.parametrize(
    ("tasks", "words"), [([], "names none"), (["none/tasks"], "--tasks none/tasks: no such folder")]
)
def test_what_can_be_said_before_a_process_starts_is(tmp_path: Path, tasks: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        score_on_tasks(str(tmp_path), tasks)


@needs_harness
@pytest.mark.slow
def test_a_task_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_responses(tmp_path / "stored.json")
    with pytest.raises(UserError, match="no task in this folder"):
        score_on_tasks(str(tmp_path / "stored.json"), [str(tmp_path / "empty")])
