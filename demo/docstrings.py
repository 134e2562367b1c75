"""Real text that every machine has: the docstrings of Python's standard library, as questions and answers."""

from __future__ import annotations

import importlib
import inspect
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

MODULES = (
    "argparse",
    "base64",
    "bisect",
    "calendar",
    "collections",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "fractions",
    "functools",
    "glob",
    "hashlib",
    "heapq",
    "html",
    "inspect",
    "itertools",
    "json",
    "logging",
    "math",
    "operator",
    "os",
    "pathlib",
    "random",
    "re",
    "secrets",
    "shlex",
    "shutil",
    "socket",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "timeit",
    "traceback",
    "types",
    "urllib.parse",
    "uuid",
    "warnings",
    "weakref",
    "zipfile",
)
CHARACTERS = range(120, 420)
"""Of an answer: long enough for a segment to be replaced, short enough to be read, and computed, quickly."""


def conversations(seed: int) -> list[list[dict[str, str]]]:
    """What does Python's X do? The beginning of its docstring, for everything public that has one; shuffled."""
    answers: dict[str, str] = {}
    for module in MODULES:
        for name, documented in _documented(importlib.import_module(module), module):
            answer = _beginning(inspect.getdoc(documented) or "")
            if len(answer) in CHARACTERS:
                answers.setdefault(answer, name)  # many things inherit a docstring: the first has it
    rows = [
        [
            {"role": "user", "content": f"What does Python's {name} do?"},
            {"role": "assistant", "content": answer},
        ]
        for answer, name in answers.items()
    ]
    random.Random(seed).shuffle(rows)
    return rows


def write_rows(path: Path, seed: int) -> int:
    """Write the conversations as JSONL; returns how many there are."""
    rows = conversations(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows), encoding="utf-8")
    return len(rows)


def _documented(module: object, prefix: str) -> Iterator[tuple[str, object]]:
    """Public functions and classes, and the public methods of classes, with their full names."""
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or not callable(value):
            continue
        yield f"{prefix}.{name}", value
        if inspect.isclass(value):
            methods = sorted((n, m) for n, m in vars(value).items() if not n.startswith("_") and callable(m))
            yield from ((f"{prefix}.{name}.{n}", m) for n, m in methods)


def _beginning(docstring: str) -> str:
    """The first paragraphs, as many as ``CHARACTERS`` allows, without line breaks inside. Empty where it begins with
    more than that."""
    paragraphs = [re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", docstring)]
    kept = ""
    for paragraph in paragraphs:
        longer = f"{kept}\n\n{paragraph}".strip()
        if len(longer) >= CHARACTERS.stop:
            break
        kept = longer
    return kept
