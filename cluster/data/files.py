"""Which files of a folder hold the wanted split."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from cluster.data.json_rows import COMPRESSIONS
from contracts.errors import UserError

KINDS = (".jsonl", ".json", ".parquet", ".arrow")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in the names of files and folders that name a split, as ``datasets`` and the hub have them."""
SHARD = re.compile(r"-\d+-of-\d+$")
"""As ``datasets`` numbers the files of a split."""
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json")
"""JSON beside the rows that describes them."""


class Options(NamedTuple):
    """What names a dataset in the configuration, for messages."""

    path: str = "data.path"
    split: str = "data.split"


DATA = Options()


def kind(path: Path) -> str | None:
    """The file's kind by its name; None if it is none that is read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in (".jsonl", ".json") else None
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def split_files(folder: Path, split: str, options: Options = DATA) -> tuple[list[Path], list[Path]]:
    """Files of ``split`` in order of their names, and those that are left out.

    The files lie in the folder itself, or in its ``data/``, or in a folder of the split's name. Where no name names a
    split, all of them are ``train``, as on the hub.

    Raises:
        UserError: there are none, or only of other splits, or it can't be told which are meant.
    """
    files = _data_files(folder, options.path)
    if not files:
        raise UserError(f"{options.path} {folder}: holds neither a saved dataset nor {', '.join(KINDS)} files")
    named = {file: _split_of(file.relative_to(folder)) for file in files}
    wanted = _canonical(split)
    if not any(named.values()):
        if wanted != "train":
            raise UserError(f"{options.split} {split}: no file of {folder} names a split, so all are train")
        return files, []
    chosen = [file for file in files if _whole_split(file) == split] or [
        file for file in files if named[file] == wanted or split in _words(file.relative_to(folder))
    ]
    several = sorted({_whole_split(file) for file in chosen})
    if len(several) > 1 and all(SHARD.search(file.stem) for file in chosen):
        raise UserError(f"{options.split} {split}: {folder} has {', '.join(several)}: name one of them")
    if not chosen:
        found = sorted({name for name in named.values() if name})
        raise UserError(f"{options.split} {split}: {folder} has {', '.join(found)}")
    return chosen, [file for file in files if file not in chosen]


def _whole_split(file: Path) -> str:
    """The split as the file's name has it, without the number of the shard: ``train_sft`` of
    ``train_sft-00000-of-00003.parquet``."""
    return SHARD.sub("", file.stem)


def _data_files(folder: Path, option: str) -> list[Path]:
    here = sorted(p for p in folder.iterdir() if p.is_file() and _holds_rows(p))
    if here:
        return here
    below = [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".") and _holds_files(f)]
    if not below:
        return []
    data = [f for f in below if f.name == "data"]
    splits = [f for f in below if _split_of(Path(f.name))]
    if data:
        below = data
    elif len(splits) < len(below) and len(below) > 1:
        names = ", ".join(f.name for f in below)
        raise UserError(f"{option} {folder}: holds several datasets ({names}): name one of these folders")
    return [file for f in below for file in _data_files(f, option)]


def _holds_rows(file: Path) -> bool:
    return kind(file) is not None and not file.name.startswith(".") and file.name not in DESCRIPTIONS


def _holds_files(folder: Path) -> bool:
    return any(_holds_rows(p) for p in folder.rglob("*") if p.is_file())


def _split_of(path: Path) -> str | None:
    """The split that a name names; the file's own name counts more than its folder's."""
    for part in reversed(path.parts):
        found = [split for split, words in SPLITS.items() if _words(Path(part)) & set(words)]
        if len(found) == 1:
            return found[0]
    return None


def _words(path: Path) -> set[str]:
    return set(re.split(r"[-._ 0-9/]+", str(path).lower()))


def _canonical(split: str) -> str:
    return next((name for name, words in SPLITS.items() if split in words), split)
