"""The documents name only what exists: links, paths, make targets, benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md"))
OF_THE_PRESENT = [document for document in DOCUMENTS if document.name != "CHANGELOG.md"]
"""A changelog also names what is gone."""
CODE = re.compile(r"^\s*```.*?^\s*```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
"""Fenced blocks and code spans."""
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"runs", "data"}
FILE_ENDINGS = (".py", ".md", ".yaml", ".toml", ".jinja")
MADE_BY_RUNS = ("benchmarks/results/", "config.yaml")


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def broken_links(document: Path, text: str) -> list[str]:
    """Targets of relative links that are no file, or no heading of one."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text)):
        path, _, heading = target.partition("#")
        if "://" in target:
            continue
        file = document.parent / path if path else document
        if not file.exists() or (heading and heading not in headings(file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def headings(text: str) -> set[str]:
    """As GitHub makes links of them."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def missing_paths(text: str) -> list[str]:
    """Code spans that look like a path of this project and are none."""
    spans = [span.strip("`") for span in CODE.findall(text) if not span.lstrip().startswith("```")]
    paths = [span for span in spans if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", span) and is_of_the_tree(span)]
    recipes = re.findall(r"\bconfigs/[\w./-]+", " ".join(CODE.findall(text)))
    return [path for path in (*paths, *recipes) if not (ROOT / path).exists()]


def is_of_the_tree(span: str) -> bool:
    """By its form a file, or a folder below one of the tree's. Metrics (``buffer/size``) have no ending."""
    is_folder = span.endswith("/") and span.partition("/")[0] in FOLDERS
    return (is_folder or span.endswith(FILE_ENDINGS)) and span not in MADE_BY_RUNS


def missing_targets(text: str, makefile: str) -> list[str]:
    known = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = re.findall(r"\bmake ([a-z][a-z-]*)", " ".join(CODE.findall(text)))
    return [target for target in named if target not in known]


def missing_benchmarks(text: str) -> list[str]:
    named = re.findall(r"\bbenchmarks\.([a-z_]+)", text)
    rooms = ROOT / "benchmarks"
    return [
        name
        for name in named
        if name != "md" and not (rooms / f"{name}.py").exists() and not (rooms / name / "__main__.py").exists()
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_relative_link_leads_somewhere(document):
    assert broken_links(document, document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("document", OF_THE_PRESENT, ids=name_of)
def test_every_path_make_target_and_benchmark_exists(document):
    text = document.read_text(encoding="utf-8")
    assert missing_paths(text) == []
    assert missing_targets(text, (ROOT / "Makefile").read_text(encoding="utf-8")) == []
    assert missing_benchmarks(text) == []


def test_what_does_not_exist_is_found():
    text = """[a](docs/gone.md) [b](README.md#no-such-heading) [c](https://example.org) `cluster/run/gone.py` `gone.py`
    `transfer/gone.py` `cluster/gone/` `cluster/run/` `runs/NAME/` `buffer/size` `objective.name`

    ```sh
    make gone    # makes nothing
    sapo train configs/gone.yaml
    ```
    python -m benchmarks.gone"""
    assert broken_links(ROOT / "README.md", text) == ["docs/gone.md", "README.md#no-such-heading"]
    assert missing_paths(text) == [
        "cluster/run/gone.py",
        "gone.py",
        "transfer/gone.py",
        "cluster/gone/",
        "configs/gone.yaml",
    ]
    assert missing_targets(text, "setup:\n") == ["gone"]
    assert missing_benchmarks(text) == ["gone"]
