"""Reads JSON: one object a line or one array of objects, plain or compressed, with the line of every row."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from contracts.errors import UserError, first_line

COMPRESSIONS = (".gz", ".zst")
CHUNK_CHARACTERS = 1 << 20
"""Characters of an array that are read at a time."""


def json_rows(path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank, or of every object of an array.

    Raises:
        UserError: something is not JSON in UTF-8 or no object, or the file can't be read; it is named after ``key``.
    """
    try:
        with _opened(path) as file:
            start = file.peek(CHUNK_CHARACTERS).removeprefix(b"\xef\xbb\xbf").lstrip()
            # One array over several lines, or on one: in a file of lines each line is an object.
            yield from _array(file, path, key) if start.startswith(b"[") else _lines(file, path, key)
    except (OSError, EOFError, zlib.error) as error:  # gzip raises the latter two for a file that was cut off
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{key} {path}: can't be read: {reason}") from error


def _opened(path: Path) -> io.BufferedReader:
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(path, "rb")))
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _lines(file: IO[bytes], path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, _object(line, f"{key} {path}:{number}")


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason} at byte {error.start} of the line") from error
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else "; it is the last line and has no line break: the file may be cut off"
        raise UserError(f"{where}: not JSON: {error.msg}; one object a line is expected{cut}") from error
    except ValueError as error:  # a number with more digits than Python converts
        raise UserError(f"{where}: not readable: {first_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply to be read") from error
    return _as_object(row, where)


def _as_object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: an object is expected, found {type(row).__name__}")
    return row


def _array(file: io.BufferedReader, path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of one array, decoded as they come: the file is never in memory as a whole."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    decoder, number = json.JSONDecoder(), 1
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
