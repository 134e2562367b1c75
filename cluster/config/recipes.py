"""The recipes that come with the program: listed, and copied for the user to change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs"
"""Beside the packages: in the checkout, and in an installed wheel."""
WRITTEN_FOR = "configs"
"""The folder that recipes name each other, and their templates, by."""


@dataclass(frozen=True)
class Recipe:
    """A YAML file that comes with the program."""

    path: Path
    gpus: str
    """As its head states them; 0: it runs on CPU."""
    purpose: str
    """The first sentence of its head."""

    @property
    def name(self) -> str:
        return self.path.stem


def recipes() -> list[Recipe]:
    """All of them, those for CPU first."""
    found = [_read(path) for path in FOLDER.glob("*.yaml")]
    return sorted(found, key=lambda recipe: (int(recipe.gpus.split()[0]), recipe.name))


def recipe(name: str) -> Recipe:
    """The one of that name.

    Raises:
        UserError: there is none.
    """
    known = {recipe.name: recipe for recipe in recipes()}
    if name not in known:
        raise UserError(f"recipe {name}: there is none of that name: {', '.join(known)}")
    return known[name]


def copy_recipes(names: Sequence[str], target: Path) -> list[Path]:
    """Copy recipes into a folder, and below it the templates that they use; returns what was written.

    What they say of `configs/` is said of the folder in the copy, so that its paths lead somewhere.

    Raises:
        UserError: a name is unknown, a file is there already, or one can't be written. Nothing was written.
    """
    texts = {target / f"{name}.yaml": recipe(name).path.read_text(encoding="utf-8") for name in names}
    templates = sorted(set(re.findall(rf"\b{WRITTEN_FOR}/(templates/[\w.-]+\w)", "".join(texts.values()))))
    contents = {path: text.replace(f"{WRITTEN_FOR}/", f"{target.as_posix()}/") for path, text in texts.items()}
    contents |= {target / template: (FOLDER / template).read_text(encoding="utf-8") for template in templates}
    # A template that is there with the same content serves several recipes.
    wanted = {path: text for path, text in contents.items() if not _holds(path, text)}
    if there := next((path for path in wanted if path.exists()), None):
        raise UserError(f"{there}: is there already; remove it, or give another folder by --to")
    for path, text in wanted.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--to {target}: {error.filename} can't be written: {error.strerror}") from error
    return list(contents)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _read(path: Path) -> Recipe:
    head = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    number = next(position for position, line in enumerate(head) if line.startswith("GPUs: "))
    sentence = re.split(r"(?<=[\w)])[.:] (?=[A-Z`])", " ".join(head[:number]))[0]
    return Recipe(path, head[number].removeprefix("GPUs: "), sentence.rstrip("."))
