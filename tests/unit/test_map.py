"""The house stands as `docs/design.md` draws it: imports point down the page only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = Path(__file__).parents[2] / "smtpraft"
LINES_MAX: Final = 600  # Beyond, a stranger scrolls for minutes.

BOTTOM: Final = {"types", "errors"}
LIBRARY: Final = {"consensus", "storage", "cluster", "fastlog", "config", *BOTTOM}

# What each room may import of ours. A name that is missing here has no place in the house yet.
MAY_IMPORT: Final = {
    "cli": {"smtp", "delivery", "admin", "spool", "simulator", "version", *LIBRARY},
    "simulator": {"smtp", "delivery", "admin", "spool", "version", *LIBRARY},
    "smtp": {"spool", "half", "version", *LIBRARY},
    "delivery": {"spool", "version", *LIBRARY},
    "admin": {"spool", "version", *LIBRARY},
    "spool": LIBRARY,
    "cluster": {"version", *LIBRARY} - {"cluster"},
    "consensus": {"fastlog", "half", *BOTTOM},
    "storage": {"fastlog", *BOTTOM},
    "fastlog": {"errors"},
    "config": BOTTOM,
    "types": set(),
    "errors": set(),
    "version": set(),
    "half": set(),
}

# Modules beside the rooms, and the room that each is part of.
PART_OF: Final = {
    "__init__": "version",
    "_version": "version",
    "__main__": "cli",
    "_fastcodec": "fastlog",
    "_fastcommands": "fastlog",
    "_fastlog": "fastlog",
    "_logformat": "fastlog",
    "_purecodec": "fastlog",
    "_purelog": "fastlog",
}


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi"), *PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxi")])


def room_of(module: str) -> str:
    """Return the room of a dotted name below `smtpraft`; "" is the package itself."""
    name = module.partition(".")[0] or "__init__"
    return PART_OF.get(name, name)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of each import of ours, wherever in the file it stands; `a.b` for `smtpraft.a.b`."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                # `from smtpraft import fastlog` names a module; `from smtpraft import __version__` does not.
                in_package = module == "smtpraft"
                found = [f"smtpraft.{a.name}" if in_package and a.name != "__version__" else module for a in names]
            case ast.ImportFrom():
                pytest.fail(f"{path}:{node.lineno}: say where a relative import comes from")
            case _:
                continue
        for name in found:
            top, _, rest = name.partition(".")
            if top == "smtpraft":
                yield node.lineno, rest


def python_sources() -> list[Path]:
    return [path for path in sources() if path.suffix in (".py", ".pyi")]


def test_imports_point_down_the_page_only() -> None:
    wrong = []
    for path in python_sources():
        room = room_of(path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."))
        for line, module in imported(path):
            target = room_of(module)
            if target != room and target not in MAY_IMPORT.get(room, set()):
                wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {room} imports {module or 'smtpraft'}")
    assert wrong == []


def test_every_room_has_a_place_in_the_house() -> None:
    rooms = {room_of(path.relative_to(PACKAGE).parts[0].partition(".")[0]) for path in sources()}
    assert rooms - set(MAY_IMPORT) == set()


def test_only_the_door_opens_to_the_halves_of_fastlog() -> None:
    """A `private` module of a room is named in that room only; `fastlog` is how the others reach the hot paths."""
    wrong = []
    for path in python_sources():
        home = path.relative_to(PACKAGE).with_suffix("").parts
        for line, module in imported(path):
            *parents, last = module.split(".")
            if last in ("_version", "__main__", "") or not last.startswith("_"):
                continue
            room = room_of(module) if not parents else parents[0]
            if room_of(home[0]) != room:
                wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {module}")
    assert wrong == []


def test_no_file_takes_minutes_to_scroll_through() -> None:
    long = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in sources()}
    assert {name: lines for name, lines in long.items() if lines > LINES_MAX} == {}


def test_every_module_says_what_it_is_for() -> None:
    """And every annotation may name what is defined below it."""
    for path in python_sources():
        tree = ast.parse(path.read_text())
        if path.suffix == ".py":
            assert ast.get_docstring(tree), path
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                assert path.name == "fastlog.py", f"{path}: a star hides where names come from"
