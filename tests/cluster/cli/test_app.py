"""What a user can mend is one line on stderr and a status that is not 0; looking at the help is fast."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import UserError
from support.command_line import Sapo
from support.paths import REPOSITORY


def test_without_arguments_the_first_commands_are_shown(sapo: Sapo) -> None:
    for arguments in ((), ("--help",)):
        said = sapo(*arguments)
        shown = said.out + said.err
        for words in (
            "train",
            "sft",
            "eval",
            "generate",
            "actors",
            "config",
            "report",
            "plan",
            "doctor",
            "python -m demo data",
        ):
            assert words in shown


@pytest.mark.parametrize("command", ["train", "sft", "generate", "config", "plan", "doctor"])
def test_a_config_that_cannot_be_used_is_one_line(sapo: Sapo, tmp_path: Path, run_file: Path, command: str) -> None:
    assert sapo(command, tmp_path / "none.yaml").rejection == f"{tmp_path / 'none.yaml'}: no such config file"
    assert sapo(command, tmp_path).rejection == f"{tmp_path}: a folder; a YAML file is expected"
    assert "did you mean learner.steps?" in sapo(command, run_file, "learner.step=3").rejection
    assert sapo(command, run_file, "learner.steps").rejection.startswith("override 'learner.steps': ")
    assert "name a/b" in sapo(command, run_file, "name=a/b").rejection
    assert "must be at most 100 letters" in sapo(command, run_file, f"name={'a' * 101}").rejection


@pytest.mark.parametrize(
    ("arguments", "rejection"),
    [
        ("trian", "No such command 'trian'. Did you mean 'train'? (see `sapo --help`)"),
        ("train run.yaml --nope", "No such option: --nope (see `sapo train --help`)"),
        ("train", "Missing argument 'config' (see `sapo train --help`)"),
        ("actors one --run r", "Invalid value for 'change': Input should be a valid integer"),
    ],
)
def test_what_is_wrong_with_the_command_itself_is_one_line_too(sapo: Sapo, arguments: str, rejection: str) -> None:
    assert sapo(*arguments.split()).rejection.startswith(rejection)


@pytest.mark.parametrize("key", ["output_dir", "data.path", "model.path", "data.chat_template", "data.held_out"])
def test_a_path_that_can_not_be_one_is_one_line(sapo: Sapo, run_file: Path, key: str) -> None:
    long = "n" * 300
    said = sapo("train", run_file, f"{key}={long}", "--dry-run").rejection
    assert long in said and said.endswith(": File name too long")


def test_other_errors_are_bugs_and_keep_their_traceback(
    sapo: Sapo, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cluster.run.train.train", train)
    with pytest.raises(ZeroDivisionError):
        sapo("train", run_file)


def test_a_rejection_of_several_lines_is_printed_as_one(
    sapo: Sapo, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise UserError("first\n  second")

    monkeypatch.setattr("cluster.run.train.train", train)
    assert sapo("train", run_file).rejection == "first second"


def test_the_installed_program_rejects_without_a_traceback(run_file: Path) -> None:
    arguments = [sys.executable, "-m", "cluster", "train", str(run_file), "learner.step=3"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["sapo: command line: learner.step: unknown key; did you mean learner.steps?"]


def test_help_and_config_import_nothing_heavy(run_file: Path) -> None:
    """What takes seconds to import would make every look at the help take them."""
    heavy = ("torch", "transformers", "ray", "datasets", "vllm", "deepspeed", "pyarrow")
    for arguments in (["--help"], ["config", str(run_file)]):
        code = (
            f"import sys; sys.argv = ['sapo', *{arguments!r}]; from cluster.cli.app import main\n"
            f"try: main()\nexcept SystemExit: pass\nprint([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
        )
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert done.stderr.splitlines()[-1] == "[]"
