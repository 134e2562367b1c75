"""Reads JSON: one object a line or one array of objects, plain or compressed, with the line of every row."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from contracts.errors import UserError, first_line

COMPRESSIONS = (".gz", ".zst")
CHUNK_CHARACTERS = 1 << 20
"""Characters of an array that are read at a time."""


def json_rows(path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank, or of every object of an array.

    Raises:
        UserError: something is not JSON in UTF-8 or no object, or the file can't be read; it is named after ``key``.
    """
    last = 0
    try:
        with _opened(path) as file:
            start = file.peek(CHUNK_CHARACTERS).removeprefix(b"\xef\xbb\xbf").lstrip()
            # One array over several lines, or on one: in a file of lines each line is an object.
            for last, row in _array(file, path, key) if start.startswith(b"[") else _lines(file, path, key):
                yield last, row
    except (OSError, EOFError, zlib.error) as error:  # gzip raises the latter two for a file that was cut off
        reason = getattr(error, "strerror", None) or first_line(error)
        where = f"{path}:{last + 1}" if last else str(path)
        after = f"; line {last} is the last that is whole" if last else ""
        raise UserError(f"{key} {where}: can't be read: {reason}{after}") from error


def _opened(path: Path) -> io.BufferedReader:
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(path, "rb")))
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _lines(file: io.BufferedReader, path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    first = True
    for number, line in enumerate(_split(file), 1):
        if line.strip():
            yield number, _object(line, f"{key} {path}:{number}", first)
            first = False


def _split(file: io.BufferedReader) -> Iterator[bytes]:
    """Lines as all systems end them; JSON has no bare line break within a text."""
    start = file.peek(CHUNK_CHARACTERS)
    if b"\r" in start and b"\n" not in start:
        # As on old Macs: the whole file would be one line. Latin-1 has a character for each byte, and gives it back.
        yield from (line.encode("latin-1") for line in io.TextIOWrapper(file, "latin-1"))
        return
    for line in file:
        yield from line.splitlines(keepends=True) if b"\r" in line[:-2] else (line,)


def _object(line: bytes, where: str, first: bool) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason} at byte {error.start} of the line") from error
    except _TwiceError as error:
        raise UserError(f"{where}: {error}") from error
    except json.JSONDecodeError as error:
        if first and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") and not error.doc[error.pos :].strip():
            raise UserError(
                f"{where}: an object that goes on in the next line: one object a line is expected, or an array of "
                "objects"
            ) from error
        cut = "" if line.endswith(b"\n") else "; it is the last line and has no line break: the file may be cut off"
        raise UserError(f"{where}: not JSON: {error.msg}; one object a line is expected{cut}") from error
    except ValueError as error:  # a number with more digits than Python converts
        raise UserError(f"{where}: not readable: {first_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply to be read") from error
    return _as_object(row, where)


class _TwiceError(ValueError):
    """An object has a key twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys; Python's own way keeps the last value of a key without a word.

    Raises:
        _TwiceError: a key is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise _TwiceError(f"the key {twice!r} is twice in one object; which value is meant can't be told")
    return found


def _as_object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: an object is expected, found {type(row).__name__}")
    return row


def _array(file: io.BufferedReader, path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of one array, decoded as they come: the file is never in memory as a whole."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    decoder, number = json.JSONDecoder(object_pairs_hook=_once), 1
    buffer, ended, separator = "", False, "["
    while True:
        try:
            stripped = buffer.lstrip()
            number += buffer[: len(buffer) - len(stripped)].count("\n")
            buffer = stripped
            if buffer.startswith("]") and separator != "[":
                if rest := (buffer[1:] + text.read()).strip():
                    raise UserError(f"{key} {path}:{number}: text after the array: {rest[:20]!r}")
                return
            if buffer.startswith(separator):
                after = buffer[1:].lstrip()
                if separator == "[" and after.startswith("]"):
                    return
                row, end = decoder.raw_decode(buffer, len(buffer) - len(after)) if after else (None, 0)
                if after:
                    begins = number + buffer[: len(buffer) - len(after)].count("\n")
                    yield begins, _as_object(row, f"{key} {path}:{begins}")
                    number += buffer[:end].count("\n")
                    buffer, separator = buffer[end:], ","
                    continue
            elif buffer:
                raise UserError(f"{key} {path}:{number}: not JSON: {separator!r} is expected, found {buffer[:1]!r}")
        except json.JSONDecodeError as error:  # broken, or not all of it has been read
            if ended:
                line = number + buffer[: error.pos].count("\n")
                raise UserError(f"{key} {path}:{line}: not JSON: {error.msg}") from error
        except (RecursionError, UnicodeDecodeError, ValueError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else first_line(error)
            raise UserError(f"{key} {path}:{number}: not readable: {reason}") from error
        if ended:
            raise UserError(f"{key} {path}:{number}: the array does not end: the file may be cut off")
        try:
            # An object that is larger than a chunk is decoded again: twice as much is read each time.
            more = text.read(max(CHUNK_CHARACTERS, len(buffer)))
        except UnicodeDecodeError as error:
            raise UserError(f"{key} {path}: not UTF-8: {error.reason} after line {number}") from error
        ended = not more
        buffer += more
