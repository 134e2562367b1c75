"""Commands in documents and scripts, held against the command line without running them."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from cluster.cli.app import app
from cluster.config.loading import load_config
from cluster.config.recipes import recipe
from contracts.errors import UserError
from support.paths import REPOSITORY

CommandLineError: Any = typer.BadParameter.__mro__[2]
"""Whatever a command line can have wrong. Typer has no public name for it."""
READS_CONFIG = ("train", "sft", "generate", "data", "plan", "config", "doctor")
STAND_IN = REPOSITORY / "configs" / "demo.yaml"
"""For a config that is the reader's own."""


def scripts(document: str) -> list[str]:
    """The fenced blocks of a Markdown text that are shell."""
    return [textwrap.dedent(body) for body in re.findall(r"^ *```sh\n(.*?)^ *```", document, re.MULTILINE | re.DOTALL)]


def lines(script: str) -> list[str]:
    """A script's commands as they stand, continued lines joined, without comments."""
    joined = re.sub(r"\\\n\s*", " ", script).splitlines()
    return [line for raw in joined if (line := re.sub(r"(^|\s)#.*$", "", raw).strip())]


def commands(script: str) -> Iterator[list[str]]:
    """The words of every command of a shell script: lines joined where they go on, comments, variables' values and what
    connects commands left out."""
    for line in lines(script):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set(";&|()"):
                yield from _inner(words)
                words = []
            else:
                words.append(word)
        yield from _inner(words)


def _inner(words: list[str]) -> Iterator[list[str]]:
    """A command, or what a shell in it runs (``bash -c``, ``trap``)."""
    if words[:2] == ["bash", "-c"] or words[:1] == ["trap"]:
        yield from commands(words[2] if words[0] == "bash" else words[1])
    elif words:
        yield words


def sapo_words(words: list[str]) -> list[str] | None:
    """What stands after the program's name, where the command calls it, also at the end of another (``srun … --``)."""
    for position, word in enumerate(words):
        if word == "sapo" or word.endswith("bin/sapo"):
            return words[position + 1 :]
        if word == "-m" and words[position + 1 : position + 2] == ["cluster"]:
            return words[position + 2 :]
    return None


def complaint(words: list[str]) -> str | None:
    """What speaks against a call of the program: an unknown command, option, recipe or config key, a bad value."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    try:
        with group.make_context("sapo", list(words)) as context:
            if not words:
                return None
            name, command, rest = group.resolve_command(context, list(words))
            assert command is not None
            with command.make_context(name, rest, parent=context) as parsed:
                given = dict(parsed.params)
    except typer.Exit:  # --help
        return None
    except CommandLineError as error:
        return error.format_message()
    try:
        if name == "recipes":
            for wanted in given["names"] or ():
                recipe(wanted)
        if name in READS_CONFIG and given.get("config"):
            own = REPOSITORY / "configs" / given["config"].name
            load_config(own if own.exists() else STAND_IN, given.get("overrides") or [])
    except UserError as error:
        return str(error)
    return None
