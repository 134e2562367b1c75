"""A file that is appended to on a disk that may be full for a while."""

from __future__ import annotations

from io import FileIO
from pathlib import Path


class AppendedFile:
    """What is written is in the file when ``write`` returns. What a full disk does not take is kept, and written before
    what comes next, so that the file never has a gap or a torn record in its middle."""

    def __init__(self, path: Path) -> None:
        """The file is made by the first ``write``."""
        self._path = path
        self._file: FileIO | None = None
        self._unwritten = b""

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            OSError: the disk did not take it; a later call will try again.
        """
        self._unwritten += data
        if self._file is None:
            self._file = FileIO(self._path, "a")
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
