"""The rooms of the house: which may use which, which libraries each may know, and that nothing goes in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness.process import ROOT


class Room(NamedTuple):
    """A folder of the product.

    Attributes:
        may_use: rooms that its modules may import from, beside itself.
        libraries: that it may know, beside the standard library.
    """

    may_use: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


# From the ground up: a room uses only what stands above it in this table.
ROOMS = {
    "wal": Room((), ("msgpack",)),
    "wal/tools": Room(("wal",), ("msgpack",)),
    "engine": Room((), ("trio",)),
    "engine/commands": Room(("engine",)),
    "engine/store": Room(("engine", "engine/commands"), ("msgpack", "sortedcontainers")),
    "engine/embedded": Room(("wal", "engine", "engine/commands", "engine/store"), ("msgpack", "trio")),
    "engine/redis": Room(("engine", "engine/commands"), ("coredis", "msgpack", "sortedcontainers", "trio")),
    "engine/moving": Room(
        ("wal", "wal/tools", "engine", "engine/commands", "engine/store", "engine/embedded", "engine/redis"),
        ("coredis", "msgpack", "trio"),
    ),
    "api/dialects": Room(("engine", "engine/commands")),
    "api/http": Room(("engine", "api/dialects"), ("hypercorn", "trio")),
    "api/app": Room(
        ("engine", "api/dialects", "api/http"), ("h11", "hypercorn", "quart", "quart_trio", "trio", "werkzeug")
    ),
    "api/door": Room(("engine", "engine/commands", "api/dialects", "api/http"), ("httptools", "hypercorn", "trio")),
    "api/server": Room(
        ("wal", "engine", "engine/store", "engine/embedded", "engine/redis", "api/http", "api/app", "api/door"),
        ("click", "hypercorn", "trio"),
    ),
    "api/cli": Room(
        (
            *("wal", "wal/tools", "engine", "engine/store", "engine/embedded", "engine/redis", "engine/moving"),
            "api/server",
        ),
        ("click", "trio"),
    ),
    "api": Room(("api/cli",)),
}

IO = {"datetime", "io", "os", "pathlib", "random", "shutil", "socket", "subprocess", "tempfile", "threading"}

PURE = {
    "engine/commands": {*IO, "time"},
    "engine/store": {*IO, "time"},
    "api/dialects": IO,  # a parser lets go of the GIL by `time`
}
"""Rooms that do no I/O, and what they do not import from the standard library."""

FILE_LINES_MAX = 400
CLASS_LINES_MAX = 250


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {
    module_of(path): path
    for top in ("wal", "engine", "api")
    for path in sorted((ROOT / top).rglob("*.py"))
    if path.name != "__init__.py"
}


def room_of(module: str) -> str:
    return module.rpartition(".")[0].replace(".", "/")


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports, also within functions and for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            inside = {f"{module}.{alias.name}" for alias in node.names} & set(MODULES)
            yield from inside or {module}


USES = {module: set(imported(path)) for module, path in MODULES.items()}


def test_rooms_stand_on_what_is_below_them() -> None:
    below: list[str] = []
    for name, room in ROOMS.items():
        unbuilt = set(room.may_use) - set(below)
        assert not unbuilt, f"{name} may use {unbuilt}, but that is not below it"
        below.append(name)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_uses_only_the_rooms_and_libraries_that_its_room_may(module: str) -> None:
    name = room_of(module)
    assert name in ROOMS, f"{name} is a new room: say here what it may use"
    room = ROOMS[name]
    for used in USES[module]:
        if used in MODULES:
            other = room_of(used)
            assert other in (name, *room.may_use), f"{module} uses {used}, but {name} may not use {other}"
        else:
            library = used.partition(".")[0]
            known = library in sys.stdlib_module_names or library in room.libraries
            assert known, f"{module} imports {used}, but {name} may not know {library}"


@pytest.mark.parametrize("name", PURE)
def test_a_pure_room_does_no_io(name: str) -> None:
    for module in MODULES:
        if room_of(module) == name:
            found = {used.partition(".")[0] for used in USES[module]} & PURE[name]
            assert not found, f"{module} imports {found}, but {name} is pure"


def test_no_imports_go_in_a_circle() -> None:
    """Neither at run time nor for type checkers."""
    left = {module: used & set(MODULES) for module, used in USES.items()}
    while outside := {module for module in left if not left[module] or module not in set().union(*left.values())}:
        left = {module: used - outside for module, used in left.items() if module not in outside}
    assert not left, f"these modules import each other in a circle, or lie between two: {sorted(left)}"


def test_a_folder_says_in_its_init_what_lives_there_and_imports_nothing() -> None:
    for name in ROOMS:
        tree = ast.parse((ROOT / name / "__init__.py").read_text())
        assert ast.get_docstring(tree), f"{name}/__init__.py does not say what lives there"
        assert len(tree.body) == 1, f"{name}/__init__.py holds more than that: whoever imports one module gets others"


@pytest.mark.parametrize("module", MODULES)
def test_files_and_classes_are_of_a_size_that_is_read_in_one_go(module: str) -> None:
    text = MODULES[module].read_text()
    assert text.count("\n") <= FILE_LINES_MAX, f"{module} is longer than {FILE_LINES_MAX} lines: look for its seams"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= CLASS_LINES_MAX, f"{module}.{node.name} is longer than {CLASS_LINES_MAX} lines"


# What the rooms do not say by themselves


def test_only_files_py_and_the_places_below_it_touch_the_file_system() -> None:
    for module in MODULES:
        if module.startswith("wal.") and module not in ("wal.files", "wal.places"):
            found = USES[module] & {"os", "io", "pathlib", "shutil", "fcntl"}
            assert not found, f"{module} imports {found}: the seam for faults of the disk is wal.files"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_needs_a_place_for_temporary_files(module: str) -> None:
    """In a container with a read-only root there is none."""
    assert "tempfile" not in USES[module]


def test_the_command_line_opens_no_log_for_appending_and_runs_no_engine() -> None:
    """Its tools read logs, and mend them; what serves is put together in api/server."""
    for module in MODULES:
        if module.startswith("api.cli."):
            found = USES[module] & {"wal.log", "engine.embedded.engine", "engine.embedded.actor", "engine.redis.engine"}
            assert not found, f"{module} uses {found}"


def test_only_the_composition_root_knows_both_engines() -> None:
    for module in MODULES:
        if module.startswith("api.server."):
            both = {"api.server.embedded", "api.server.clustered"} & USES[module]
            assert not both or module == "api.server.root", f"{module} uses {both}"


def test_the_library_for_redis_is_not_imported_before_it_is_needed() -> None:
    """It takes 0.2 s, and is not installed with the embedded engine."""
    program = "import api.cli.main, sys; print([name for name in sys.modules if name.split('.')[0] == 'coredis'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
