"""``sapo data`` shows what becomes of the rows, and starts nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from support.command_line import Sapo

USER = {"role": "user", "content": "write 3 numbers"}
ROW = {"messages": [USER, {"role": "assistant", "content": "1 2 9"}]}


def test_rows_reasons_seams_and_lengths_are_shown(
    sapo: Sapo, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("something is started"))
    lines = [ROW, {"messages": [USER]}, ROW, {"messages": [USER]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    said = sapo("data", run_file, "--rows", 1)
    assert said.status == 0
    shown = said.out.splitlines()
    assert shown[:4] == [
        f"{tmp_path / 'rows.jsonl'}: 2 of 4 rows used",
        "dropped: 2 without an assistant turn (first: rows.jsonl:2)",
        "the tokenizer opens text with no special token",
        "a response ends at </s> (tokenizer, chat template)",
    ]
    assert "prompt tokens: 12 in all; shortest 6, 5 % 6, median 6, 95 % 6, longest 6" in shown
    assert "       4 – 4              2 ████████████████████████████████████████" in shown
    assert "--- row 0: 6 prompt tokens, 4 response tokens" in shown
    assert "<s> <user> write 3 numbers <assistant>⟦prompt ends⟧" in shown
    assert (
        "response seam: 4:'<user>' 6:'write' 17:'3' 7:'numbers' 5:'<assistant>' | 15:'1' 16:'2' 23:'9' 2:'</s>'"
        in shown
    )
    assert "--- row 1" not in said.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "rows.jsonl", "run.yaml"], "nothing is written"


def test_pairs_show_both_seams(sapo: Sapo, run_file: Path, tmp_path: Path) -> None:
    row = {"prompt": [USER], "chosen": "1 2 9", "rejected": "1 2"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    shown = sapo("data", run_file, "method=offline").out
    assert "chosen seam: " in shown
    assert "rejected seam: " in shown
    assert "rejected tokens: 3 in all" in shown


FILES: dict[str, tuple[str, bytes, str]] = {
    "a line that was cut": ("d.jsonl", json.dumps(ROW).encode() + b'\n{"mess', "data.path {}:2: not JSON: "),
    "another encoding": ("d.jsonl", '{"messages": "é"}'.encode("latin-1"), "data.path {}:1: not UTF-8: "),
    "a file that was cut": (
        "d.jsonl.gz",
        gzip.compress(json.dumps(ROW).encode())[:-9],
        "data.path {}: can't be read: ",
    ),
    "no Parquet": ("d.parquet", b"PAR1", "data.path {}: not readable as Parquet: "),
    "no Arrow": ("d.arrow", b"ARROW1", "data.path {}: not readable as Arrow: "),
    "an unknown kind": ("d.csv", b"a,b\n", "data.path {}: unknown kind of file; "),
    "other columns": ("d.jsonl", b'{"text": "x"}\n', "data.path {}: no column 'messages' and no 'prompt' with "),
    "nothing": ("d.jsonl", b"", "data.path: no usable row in {}: 0 of 0 rows used"),
    "no usable row": ("d.jsonl", b'{"messages": 3}\n', "data.path: no usable row in {}: 0 of 1 rows used; dropped: "),
    "an empty array": ("d.json", b"[]", "data.path: no usable row in {}: 0 of 0 rows used"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_can_not_be_used_is_one_line(sapo: Sapo, run_file: Path, tmp_path: Path, kind: str) -> None:
    name, content, words = FILES[kind]
    path = tmp_path / name
    path.write_bytes(content)
    assert sapo("data", run_file, f"data.path={path}").rejection.startswith(words.format(path))
    assert path.read_bytes() == content
