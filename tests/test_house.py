"""The floor plan holds: who may import whom, no circles, and no file that goes around the formatter."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from support.paths import REPOSITORY

ROOMS = ("actors", "buffer", "cluster", "contracts", "learner")
MAY_IMPORT = {
    "contracts": set(),
    "buffer": {"contracts"},
    "learner": {"contracts"},
    "actors": {"buffer", "contracts"},
    "cluster": {"actors", "buffer", "contracts", "learner"},
}


def files(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Modules of this project that a file imports, inside functions too; what only the type checker reads is not."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module of the package or something in it.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in ROOMS)


GRAPH = {module_of(path): set(imports(path)) for room in ROOMS for path in files(room)}


def test_no_module_imports_itself_by_a_circle():
    known = {module: targets & GRAPH.keys() for module, targets in GRAPH.items()}
    try:
        order = list(TopologicalSorter(known).static_order())
    except CycleError as error:
        pytest.fail(f"import circle: {' <- '.join(error.args[1])}")
    assert len(order) == len(GRAPH) > 80


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_the_rooms_below_it(room: str):
    known = {target.partition(".")[0] for path in files(room) for target in imports(path)} - {room}
    assert known <= MAY_IMPORT[room]


def test_cluster_is_rooms_and_not_a_corridor():
    assert len(list((REPOSITORY / "cluster").glob("*.py"))) <= 5


@pytest.mark.parametrize("word", ["fmt: " + "skip", "pic" + "kle"])
def test_no_file_goes_around_the_formatter_or_unpacks_code(word: str):
    found = [str(path) for room in ROOMS for path in files(room) if word in path.read_text()]
    assert not found
