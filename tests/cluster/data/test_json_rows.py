"""JSON is read as lines or as an array, plain or compressed; what is broken is named with its line."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.data import json_rows as module
from cluster.data.json_rows import json_rows
from contracts.errors import UserError

ROWS = [{"a": 1, "b": "x\n"}, {"a": 2, "c": [{"d": "é🦙"}]}, {}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


WRITTEN: dict[str, tuple[str, bytes, list[int]]] = {
    "lines": ("d.jsonl", LINES, [1, 2, 3]),
    "lines in a .json": ("d.json", LINES, [1, 2, 3]),
    "no line break at the end": ("d.jsonl", LINES.rstrip(b"\n"), [1, 2, 3]),
    "a byte order mark": ("d.jsonl", b"\xef\xbb\xbf" + LINES, [1, 2, 3]),
    "lines of Windows": ("d.jsonl", LINES.replace(b"\n{", b"\r\n{"), [1, 2, 3]),
    "lines of old Macs": ("d.jsonl", LINES.replace(b"\n", b"\r"), [1, 2, 3]),
    "lines of several systems": ("d.jsonl", LINES.replace(b"\n", b"\r", 1).replace(b"\n", b"\r\n", 1), [1, 2, 3]),
    "blank lines": ("d.jsonl", b"\n  \n" + LINES.replace(b"\n{", b"\n\n{"), [3, 5, 7]),
    "gzip": ("d.jsonl.gz", gzip.compress(LINES), [1, 2, 3]),
    "gzip in two parts": ("d.jsonl.gz", gzip.compress(LINES[:9]) + gzip.compress(LINES[9:]), [1, 2, 3]),
    "zstd": ("d.jsonl.zst", zstd(LINES), [1, 2, 3]),
    "an array on one line": ("d.json", json.dumps(ROWS).encode(), [1, 1, 1]),
    "an array over many lines": ("d.json", json.dumps(ROWS, indent=2).encode(), [2, 6, 14]),
    "an array with a byte order mark": ("d.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), [1, 1, 1]),
    "a compressed array": ("d.json.gz", gzip.compress(json.dumps(ROWS).encode()), [1, 1, 1]),
}


@pytest.mark.parametrize("form", WRITTEN)
def test_the_same_objects_are_read_from_every_form(tmp_path: Path, form: str) -> None:
    name, content, lines = WRITTEN[form]
    (tmp_path / name).write_bytes(content)
    found = list(json_rows(tmp_path / name, "data.path"))
    assert [row for _, row in found] == ROWS
    assert [line for line, _ in found] == lines


def test_an_empty_array_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(" [ ]\n")
    assert list(json_rows(tmp_path / "d.json", "data.path")) == []


MANY_LINES = b"".join(b'{"a": "%s"}\n' % hashlib.sha256(b"%d" % i).hexdigest().encode() for i in range(2000))
DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "another encoding": ("d.jsonl", b'{"a": "\xe9"}', ":1: not UTF-8: invalid continuation byte at byte 7 of the line"),
    "UTF-16": ("d.jsonl", '{"a": 1}'.encode("utf-16"), ":1: not UTF-8: invalid start byte at byte 0 of the line"),
    "a NUL byte": ("d.jsonl", b'{"a": "x\0y"}\n', ":1: not JSON: Invalid control character at"),
    "a line of NUL bytes": ("d.jsonl", b'{"a": 1}\n\0\0\0\n', ":2: not JSON: Expecting value"),
    "a last line that was cut": (
        "d.jsonl",
        b'{"a": 1}\n{"a": ',
        ":2: not JSON: Expecting value; one object a line is expected; it is the last line and has no line break: "
        "the file may be cut off",
    ),
    "nested too deeply": ("d.jsonl", b'{"a": 1}\n' + DEEP + b"\n", ":2: nested too deeply to be read"),
    "nested too deeply in an array": ("d.json", b"[" + DEEP + b"]", ":1: not readable: nested too deeply"),
    "a number with too many digits": (
        "d.jsonl",
        b'{"a": ' + b"7" * 5000 + b"}\n",
        ":1: not readable: Exceeds the limit",
    ),
    "no object": ("d.jsonl", b'{"a": 1}\n"text"\n', ":2: an object is expected, found str"),
    "no object in an array": ("d.json", b'[{"a": 1},\n3]', ":2: an object is expected, found int"),
    "an array that was cut": ("d.json", b'[{"a": 1},\n{"a": ', ":2: not JSON: Expecting value"),
    "an array without its end": ("d.json", b'[{"a": 1}\n', ":2: the array does not end: the file may be cut off"),
    "an array without a comma": ("d.json", b'[{"a": 1}\n{"a": 2}]', ":2: not JSON: ',' is expected, found '{'"),
    "text after an array": ("d.json", b'[{"a": 1}]\n[{"a": 2}]', ":1: text after the array: '[{\"a\": 2}]'"),
    "an array in another encoding": (
        "d.json",
        b'[{"a": "\xe9"}]',
        ": not UTF-8: invalid continuation byte after line 1",
    ),
    "gzip that was cut": (
        "d.jsonl.gz",
        gzip.compress(LINES)[:-12],
        ": can't be read: Compressed file ended before the end-of-stream marker was reached",
    ),
    "gzip that was cut after some lines": (
        "d.jsonl.gz",
        gzip.compress(MANY_LINES)[:-1000],
        ":LINE: can't be read: Compressed file ended before the end-of-stream marker was reached; line LAST is the "
        "last that is whole",
    ),
    "zstd that was cut after some lines": (
        "d.jsonl.zst",
        zstd(MANY_LINES)[:-1000],
        ":LINE: can't be read: Truncated compressed stream; line LAST is the last that is whole",
    ),
    "one object over several lines": (
        "d.json",
        b'\xef\xbb\xbf{\n  "messages": []\n}\n',
        ":1: an object that goes on in the next line: one object a line is expected, or an array of objects",
    ),
    "a key that is there twice": (
        "d.jsonl",
        b'{"a": 1}\n{"a": [{"role": "user", "role": "system"}]}\n',
        ":2: the key 'role' is twice in one object; which value is meant can't be told",
    ),
    "a key that is there twice in an array": (
        "d.json",
        b'[{"a": 1, "a": 1}]',
        ":1: not readable: the key 'a' is twice in one object",
    ),
    "no gzip": ("d.jsonl.gz", LINES, ": can't be read: Not a gzipped file"),
    "zstd that was cut": ("d.jsonl.zst", zstd(LINES)[:-12], ": can't be read: Truncated compressed stream"),
    "no zstd": ("d.jsonl.zst", LINES, ": can't be read: ZSTD decompress failed"),
}


@pytest.mark.parametrize("form", BROKEN)
def test_what_is_broken_is_named_in_one_line(tmp_path: Path, form: str) -> None:
    name, content, words = BROKEN[form]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(json_rows(tmp_path / name, "data.path"))
    said = str(caught.value)
    if "LINE" in words:
        last = int(said.rpartition("line ")[2].split()[0])
        assert 0 < last < 2000
        words = words.replace("LINE", str(last + 1)).replace("LAST", str(last))
    assert said.startswith(f"data.path {tmp_path / name}{words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 7])
@settings(max_examples=30)
@given(rows=st.lists(st.dictionaries(st.text(), st.lists(st.text() | st.integers() | st.floats(allow_nan=False)))))
def test_an_array_is_read_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, chunk: int, rows: list[dict[str, list[object]]]
) -> None:
    path = tmp_path_factory.mktemp("array") / "d.json"
    write: Callable[..., str] = json.dumps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_CHARACTERS", chunk)
        for indent in (None, 1):
            path.write_text(write(rows, indent=indent))
            assert [row for _, row in json_rows(path, "data.path")] == rows
