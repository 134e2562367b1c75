"""Small files that a library writes into a folder alone, taken as bytes: to be written elsewhere, later or often."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory


def written_by(save: Callable[[Path], object]) -> dict[str, bytes]:
    """What ``save`` writes into the folder that it is given: content by name, names relative to the folder."""
    with TemporaryDirectory(prefix="sapo-") as name:
        folder = Path(name)
        save(folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write what ``written_by`` gave into ``folder``, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
