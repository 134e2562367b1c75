"""The documents are enough: their commands take a newcomer from an empty folder to an exported model.

The walk of docs/start/cpu.md runs command by command, with the program installed from its wheel. Steps, rows and ranks
are few. The fixture does the installation: the packages are 4 GB. In the folder that the walk leaves, the commands of
all other documents run too: what would start engines with ``--dry-run``. What needs a GPU, the hub or a run that is
going on is held against the command line alone, by ``tests/test_docs.py``.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import REPOSITORY
from support.shell_commands import commands, lines, sapo_words, scripts
from support.wheel import Installed

WALK = REPOSITORY / "docs" / "start" / "cpu.md"
LONGEST_WALK = 12
INSTALLATION = 3
"""Its first commands, which the fixture stands for."""
STEPS = 4
ROWS = 500
DRY = ("train", "sft", "generate", "eval")
MAY_BE_1 = ("doctor", "plan")
"""Their exit status says that something is wrong with this machine."""
ELSEWHERE = {
    "--run": "asks a run that is going on: tests/cluster/test_cluster_mode.py",
    "--push-to-hub": "needs the hub: tests/cluster/export/test_export.py",
    "--what adapter": "needs a run with adapters: tests/cluster/export/test_export.py",
    "--tasks": "needs lm-evaluation-harness: tests/cluster/cli/test_eval_command.py",
    "alpaca_eval.json": "needs AlpacaEval's prompts: tests/cluster/evaluation/test_generation_files.py",
    "--write mt-bench": "needs MT-Bench's questions: tests/cluster/evaluation/test_generation_files.py",
    "--judge-url": "needs a judge's server: tests/cluster/cli/test_judge_command.py",
    "--calibrate": "needs a longer run: tests/cluster/planning/test_calibration.py",
    "mistral-7b": "needs the hub, for model and data",
    "llama-3": "needs the hub, for model and data",
}
STAND_INS = {"runs/mine": "runs/demo", "runs/debug": "runs/other", "my-model": "my-second-model"}
"""Runs that the walk does not make, and a folder that it has made already."""
RUN_ALL = """
import json, os, sys, traceback
from cluster.cli.app import main
statuses = []
for words in json.loads(sys.stdin.readline()):
    sys.argv = ["sapo", *words]
    print("$", *sys.argv, flush=True)
    try:
        main()
        statuses.append(0)
    except SystemExit as end:
        statuses.append(int(end.code or 0))
    except BaseException:
        traceback.print_exc()
        statuses.append(-1)
print("STATUSES", json.dumps(statuses))
"""


def documents() -> list[Path]:
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]


def walk() -> list[str]:
    return [line for script in scripts(WALK.read_text(encoding="utf-8")) for line in lines(script)]


def shortened(text: str) -> str:
    """With so few steps and ranks that it takes seconds."""
    few = re.sub(r"( ranks:) \d+", r"\1 1", re.sub(r"( steps:) \d+", rf"\1 {STEPS}", text))
    return re.sub(r"step-\d+", f"step-{STEPS}", few)


def other_commands() -> Iterator[list[str]]:
    """The words of the program's calls in all documents that can run in the folder of the walk, each once."""
    seen = set()
    for document in documents():
        for script in scripts(document.read_text(encoding="utf-8")):
            for command in commands(script):
                words = sapo_words(command)
                line = " ".join(words or ())
                if words and document != WALK and line not in seen and not any(text in line for text in ELSEWHERE):
                    seen.add(line)
                    yield words


LIVE = {"status", "dashboard", "debug"}
"""They need a run that goes on, a cluster's folder, or somebody at the debugger: their own tests run them."""


def prepared(words: list[str]) -> list[str]:
    """As it can run there: nothing starts, and checkpoints are those of the short run."""
    short = [STAND_INS.get(word, shortened(word)) for word in words if word != "--dry-run"]
    if words[0] in DRY:
        short.append("--dry-run")
    if "--resume" in words:
        short.append(f"learner.steps={STEPS + 1}")  # a run that is complete is not resumed
    return short


def test_the_walk_is_short_and_begins_with_the_installation() -> None:
    assert len(walk()) <= LONGEST_WALK
    assert walk()[:2] == ["python3.11 -m venv .venv", ". .venv/bin/activate"]
    assert "requirements-cpu.txt" in walk()[INSTALLATION - 1]
    programs = [" ".join(line.split()[:2]) for line in walk()[INSTALLATION:]]
    assert programs[-2:] == ["sapo eval", "sapo export"]


@pytest.mark.slow
def test_a_newcomer_walks_from_an_empty_folder_to_an_exported_model_and_the_other_commands_run_there(
    installed: Installed, tmp_path: Path
) -> None:
    for line in walk()[INSTALLATION:]:
        done = installed.run("bash", "-c", shortened(line), cwd=tmp_path, VLLM_LOGGING_LEVEL="ERROR")
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        if line.endswith("demo data"):
            train = tmp_path / "data" / "demo" / "train.jsonl"
            train.write_text("".join(train.read_text().splitlines(keepends=True)[:ROWS]))
        if line.startswith("sapo recipes"):
            for file in (tmp_path / "configs").glob("*.yaml"):
                file.write_text(shortened(file.read_text()) + "logging: {record_pairs: true}\n")
    card = (tmp_path / "my-model" / "README.md").read_text()
    assert "| this model | greedy | " in card
    assert f"for {STEPS} of {STEPS} optimizer steps" in card
    assert "<html" in (tmp_path / "runs" / "demo" / "report.html").read_text()

    recipe = (tmp_path / "configs" / "demo.yaml").read_text()
    (tmp_path / "my.yaml").write_text(recipe.replace("name: demo", "name: my-own"))
    shutil.copy(tmp_path / "runs" / "demo" / "pairs.arrow", tmp_path)
    shutil.copytree(tmp_path / "runs" / "demo", tmp_path / "runs" / "other")
    block = re.search(r"```python\n(.*?)```", (REPOSITORY / "docs/howto/objective.md").read_text(), re.DOTALL)
    assert block
    (tmp_path / "mine.py").write_text(block[1])
    run = [prepared(words) for words in other_commands() if words[0] not in LIVE]
    assert {words[0] for words in run} >= {*DRY, "data", "plan", "report", "compare", "export"}
    (tmp_path / "commands.json").write_text(json.dumps(run) + "\n")
    done = installed.run("bash", "-c", 'python -c "$PROGRAM" < commands.json', cwd=tmp_path, PROGRAM=RUN_ALL)
    statuses = json.loads(done.stdout.rpartition("STATUSES ")[2] or "[]")
    wrong = [
        words
        for words, status in zip(run, statuses, strict=True)
        if status and not (status == 1 and words[0] in MAY_BE_1)
    ]
    assert wrong == [], f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
