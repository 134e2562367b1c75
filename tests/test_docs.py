"""The documents name only what exists: links, paths, make targets, benchmarks, commands, messages. The site is whole.

Every command is held against its program's own command line. ``tests/test_walk.py`` runs those that can run here.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import torch

from learner.loss.objectives import Scores
from support.browser import CHROMIUM, dumped
from support.shell_commands import commands, complaint, sapo_words, scripts

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md"))
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
    known = {path.stem for path in (ROOT / "benchmarks").iterdir()} | {"md"}
    return [name for name in named if name not in known]


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


FOREIGN = {
    *(".", "cd", "docker", "export", "grafana-server", "kubectl", "pip", "prometheus", "python3.11", "sbatch"),
    *("sha256sum", "sky", "tensorboard"),
}
"""Programs that are not this project's. Of their arguments only files of this project are looked at."""


def wrong_command(words: list[str]) -> str | None:
    """What speaks against a command of a document."""
    ours = sapo_words(words)
    if ours is not None and (found := complaint(ours)):
        return found
    program = words[0]
    if program == "ray":
        return wrong_ray(words[1:])
    if program in ("python", ".venv/bin/python") and words[1] == "-m":
        return None if find_spec(words[2]) else f"no module {words[2]}"
    if program == "make" or Path(program).name in ("sapo", "pip", "pre-commit"):
        return None  # targets have a test of their own
    if program not in FOREIGN:
        return f"unknown program {program}"
    files = [word.removeprefix("~/sapo/") for word in words if word.removeprefix("~/sapo/").startswith("deploy/")]
    return next((f"no file {file}" for file in files if not (ROOT / file).exists()), None)


def wrong_ray(words: list[str]) -> str | None:
    from ray.scripts.scripts import cli

    group: click.Command = cli
    while isinstance(group, click.Group):
        name, *words = words
        found = group.get_command(click.Context(group), name)
        if found is None:
            return f"ray has no command {name}"
        group = found
    try:
        group.make_context(group.name, list(words))
    except click.ClickException as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("document", OF_THE_PRESENT, ids=name_of)
def test_every_command_is_one_of_its_program(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    found = {" ".join(words): wrong_command(words) for script in scripts(text) for words in commands(script)}
    assert {command: wrong for command, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("document", OF_THE_PRESENT, ids=name_of)
def test_commands_and_options_in_running_text_exist(document: Path) -> None:
    from typer.main import get_command

    from cluster.cli.app import app

    known: dict[str, click.Command] = get_command(app).commands  # type: ignore[attr-defined]
    for span in re.findall(r"`sapo ([a-z][^`]*)`", document.read_text(encoding="utf-8").replace("\n", " ")):
        name, *rest = span.split()
        assert name in known, span
        options = {option for parameter in known[name].params for option in parameter.opts} | {"--help"}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= options, span


def test_a_wrong_command_is_found() -> None:
    script = """
    sapo trian configs/demo.yaml && sapo judge a.json
    ray job submit --workingdir . -- sapo stop   # two things
    ray stat
    python -m demon
    kubectl apply -f deploy/gone.yaml
    cargo run
    """
    found = [wrong_command(words) for words in commands(script)]
    assert [bool(wrong) for wrong in found] == [True] * 7
    assert wrong_command(["sapo", "train", "configs/demo.yaml", "learner.steps=2"]) is None


def test_the_objective_of_the_document_is_one() -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs/howto/objective.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block
    names: dict[str, object] = {}
    exec(block[1], names)  # noqa: S102  our own page
    scores = Scores(policy=-torch.rand(3, 5), counts=torch.ones(3, 5, dtype=torch.int32))
    loss, metrics = names["loss"](scores)  # type: ignore[operator]
    assert loss.shape == ()
    assert [values.shape for values in metrics.values()] == [(3,)]


@cache
def messages() -> tuple[str, ...]:
    """Every text in the sources, ``…`` where a value is put in."""
    return tuple(
        text
        for room in ("actors", "buffer", "cluster", "contracts", "demo", "learner")
        for path in (ROOT / room).rglob("*.py")
        for text in texts(ast.parse(path.read_text(encoding="utf-8")))
    )


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_messages_of_troubleshooting_are_those_of_the_program() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(quoted) > 40
    assert [message for message in quoted if not any(message in known for known in messages())] == []


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it; a warning is an error."""
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_every_page_and_asks_nobody_for_anything(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert pages >= {path.relative_to(ROOT / "docs").with_suffix("") for path in ROOT.glob("docs/**/*.md")}
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//[^>]+", text) == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\s\"']*(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    config = (site / "reference" / "config.html").read_text(encoding="utf-8")
    assert "weights.max_staleness" in config
    assert "--max-shard-size" in (site / "reference" / "cli.html").read_text(encoding="utf-8")


FRAMES = """<script>
const pages = {pages}, said = [];
onload = async () => {{
  for (const [name, width] of pages) {{
    const frame = document.createElement("iframe");
    Object.assign(frame.style, {{width: width + "px", height: "900px"}});
    frame.src = name;
    await new Promise((done) => {{ frame.onload = done; document.body.append(frame); }});
    await new Promise((done) => setTimeout(done, 100));
    const root = frame.contentDocument.documentElement;
    const hits = frame.contentDocument.querySelectorAll("#search-results li").length;
    said.push(`${{name}} overflow=${{root.scrollWidth - root.clientWidth}} hits=${{hits}}`);
    frame.remove();
  }}
  document.body.append(said.join(";"));
}};
</script><body></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_opens_every_page_from_the_disk_without_an_error(site: Path, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if path.name != "search.html")
    pages = [[(site / name).as_uri(), width] for name in names for width in (1200, 390)]
    pages.append([(site / "search.html").as_uri() + "?q=staleness", 1200])
    (tmp_path / "frames.html").write_text(FRAMES.format(pages=pages))
    shown = dumped(tmp_path / "frames.html", budget_ms=60_000, timeout_s=240)
    said = shown.partition("</script>")[2].partition("<body>")[2].partition("</body>")[0].split(";")
    assert len(said) == len(pages)
    assert [line for line in said if "overflow=0 " not in line] == []
    assert not said[-1].endswith("hits=0")
