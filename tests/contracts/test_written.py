"""Files of a library that are written once and put elsewhere."""

from __future__ import annotations

from pathlib import Path

from contracts.written import write_files, written_by


def test_what_is_written_is_the_same_elsewhere_folders_within_it_too(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        (folder / "a.json").write_bytes(b"\x00a")
        (folder / "more" / "b").mkdir(parents=True)
        (folder / "more" / "b" / "c.jinja").write_text("c")

    files = written_by(save)
    assert files == {"a.json": b"\x00a", "more/b/c.jinja": b"c"}
    write_files(tmp_path / "new", files)
    assert written_by(lambda folder: write_files(folder, files)) == files
    assert (tmp_path / "new" / "more" / "b" / "c.jinja").read_text() == "c"
