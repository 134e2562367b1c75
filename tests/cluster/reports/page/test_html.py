"""The pages are whole, need no network, and show a run's own words as words."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cluster.reports.page import html
from cluster.reports.page.compare import compare_page
from cluster.reports.page.report import report_page
from contracts.errors import UserError
from support.browser import CHROMIUM, dumped
from support.run_folders import event, make_run, sample, write_lines

NODE = shutil.which("node")
STRUCK = [
    event(0, "started", step=0),
    event(4, "actor replaced", "actor-0 <died>", actor="actor-0"),
    event(9, "attempt failed", step=10, reached=12),
    event(12, "checkpoint", step=20),
    event(20, "complete", step=30),
]


class Page(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripts: dict[str, str] = {}
        self.marked: list[str] = []
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        self.addresses += [str(found[name]) for name in ("src", "href", "action") if found.get(name)]
        if tag == "script":
            self._script = found.get("id") or f"inline-{len(self.scripts)}"
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] += data


@pytest.fixture
def short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five megabytes of plotly.js are not read again by every test."""
    monkeypatch.setattr(html, "plotly_script", lambda: "const Plotly = {react() {}};")


@pytest.fixture
def page(tmp_path: Path, short_plotly: None) -> str:
    return report_page(make_run(tmp_path / "r", events=STRUCK))


@pytest.fixture
def comparison(tmp_path: Path, short_plotly: None) -> str:
    return compare_page([make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=9, seed=3)])


@pytest.mark.parametrize("which", ["page", "comparison"])
def test_a_page_is_whole_and_asks_for_nothing(which: str, request: pytest.FixtureRequest) -> None:
    read = Page(request.getfixturevalue(which))
    assert len(read.ids) == len(set(read.ids))
    assert all(address.startswith("#") and address[1:] in read.ids for address in read.addresses)
    figures = json.loads(read.scripts["figures"])
    assert len(figures) > 5
    assert {figure["id"] for figure in figures} <= set(read.ids)


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_scripts_of_a_page_are_javascript(page: str, tmp_path: Path) -> None:
    for name, text in Page(page).scripts.items():
        if name.startswith("inline"):
            (tmp_path / "script.js").write_text(text)
            assert subprocess.run([str(NODE), "--check", tmp_path / "script.js"], check=False).returncode == 0


def test_what_a_run_says_can_not_end_a_script_or_become_markup(page: str) -> None:
    samples = json.loads(Page(page).scripts["samples"])
    assert samples[0]["prompt"] == sample(10)["prompt"]
    assert "<died>" not in page
    assert "actor-0 &lt;died&gt;" in page


def test_a_report_shows_events_log_and_the_config_s_differences(page: str) -> None:
    for text in ("actor replaced", "20 of 21 rows used", "rows.jsonl", "forward and backward", "attempt 2"):
        assert text in page
    assert "27/30" not in page


def test_the_config_is_compared_with_the_recipe(tmp_path: Path, short_plotly: None) -> None:
    folder = make_run(tmp_path / "r", seed=5)
    (tmp_path / "recipe.yaml").write_text("{name: r, model: {path: model}, data: {path: rows.jsonl}}")
    page = report_page(folder, tmp_path / "recipe.yaml")
    assert "<td><code>seed</code></td><td>0</td><td>5</td>" in page
    assert "<code>model.path</code>" not in page


def test_a_comparison_begins_with_what_differs(comparison: str) -> None:
    assert "<td><code>seed</code></td><td>0</td><td>3</td>" in comparison
    assert "<code>name</code>" not in comparison
    assert comparison.index('id="config"') < comparison.index('id="curves"')


def test_a_comparison_wants_two_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    with pytest.raises(UserError, match="two or more"):
        compare_page([run])
    with pytest.raises(UserError, match="named twice"):
        compare_page([run, tmp_path / "." / "r"])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, short_plotly: None) -> None:
    page = compare_page([make_run(tmp_path / "x" / "r"), make_run(tmp_path / "y" / "r")])
    assert "x/r · y/r" in page


def test_a_run_without_pairs_or_events_has_a_page(tmp_path: Path, short_plotly: None) -> None:
    folder = make_run(tmp_path / "r", steps=1)
    write_lines(folder / "samples.jsonl", [])
    (folder / "events.jsonl").unlink()
    assert "samples.jsonl has no pairs" in report_page(folder)


@pytest.mark.contract
def test_plotly_knows_everything_that_figures_say(page: str, comparison: str) -> None:
    objects = pytest.importorskip("plotly.graph_objects")
    for figure in json.loads(Page(page).scripts["figures"]) + json.loads(Page(comparison).scripts["figures"]):
        objects.Figure(data=figure["data"], layout=figure["layout"])


BROWSER = """<body style="margin:0"><iframe id="page" style="border:0;width:{width}px;height:20000px" src="page.html">
</iframe><p id="said"></p><script>
onload = () => setTimeout(() => {{
  const inner = page.contentDocument, root = inner.documentElement;
  const plots = inner.querySelectorAll("details[open] .plot, main > .grid .plot, main > .card > .plot");
  const drawn = [...plots].filter((plot) => plot.querySelector("svg")).length;
  said.textContent = `overflow=${{root.scrollWidth - root.clientWidth}} drawn=${{drawn}}/${{plots.length}}
 pairs=${{inner.querySelectorAll("#pairs .pair").length}}`;
}}, 4000);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_draws_the_page_without_an_error_at_both_widths(tmp_path: Path, width: int) -> None:
    pytest.importorskip("plotly")
    (tmp_path / "page.html").write_text(report_page(make_run(tmp_path / "r", events=STRUCK)))
    (tmp_path / "frame.html").write_text(BROWSER.format(width=width))
    window = f"--window-size={max(width, 500)},20000"
    shown = dumped(tmp_path / "frame.html", window, budget_ms=12_000, timeout_s=120)
    said = " ".join(shown.partition('id="said">')[2].partition("</p>")[0].split())
    overflow, drawn, pairs = said.split()
    done, whole = drawn.removeprefix("drawn=").split("/")
    assert (overflow, done, pairs) == ("overflow=0", whole, "pairs=2")
    assert int(whole) >= 10


def test_pairs_are_filtered_by_numbers_that_they_have(tmp_path: Path, short_plotly: None) -> None:
    folder = make_run(tmp_path / "r")
    assert 'name="margin-min"' in report_page(folder)
    write_lines(folder / "samples.jsonl", [sample(10, margin=None, version=-1)])
    page = report_page(folder)
    assert 'name="margin-min"' not in page
    assert 'name="age-min"' not in page
    assert 'name="step-min"' in page
