"""Who may import whom: api -> engine -> wal, never back; each library where it belongs and nowhere else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.harness.process import ROOT

LAYERS = ("wal", "engine", "api")
ALLOWED_THIRD_PARTY = {
    "wal": {"msgpack"},
    "engine": {"msgpack", "sortedcontainers"},
    "engine/actor.py": {"trio"},
    "engine/checkpointer.py": {"trio"},
    "engine/clock.py": {"trio"},
    "engine/commit_thread.py": {"trio"},
    "engine/committer.py": {"trio"},
    "engine/mailbox.py": {"trio"},
    "engine/sleeper.py": {"trio"},
    "api": {"click", "h11", "httptools", "hypercorn", "quart", "quart_trio", "trio", "werkzeug"},
}
PURE = tuple(
    f"api/{name}.py" for name in ("access", "answers", "batches", "dialects", "json_body", "json_list", "line")
)
TOOLS = ("tools.py", "tool_output.py")
TOOLS_REACH = {
    f"wal.{name}"
    for name in (
        *("files", "frame", "replay", "segment"),
        *("tools.backup", "tools.check", "tools.dump", "tools.repair", "tools.view"),
    )
}
"""The tools read logs, and mend them; they neither open one for appending nor run an engine."""
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    layer = name.split("/")[0]
    tops = {module.split(".")[0] for module in imported(path)}
    below = set(LAYERS[: LAYERS.index(layer) + 1])
    third_party = ALLOWED_THIRD_PARTY[layer] | ALLOWED_THIRD_PARTY.get(name, set())
    assert tops <= set(sys.stdlib_module_names) | below | third_party


def test_only_files_py_touches_the_file_system() -> None:
    for path in (ROOT / "wal").rglob("*.py"):
        assert path.name == "files.py" or not imported(path) & {"os", "io", "pathlib", "shutil", "fcntl"}


def test_the_log_does_not_know_its_tools() -> None:
    for path in [*(ROOT / "wal").glob("*.py"), *(ROOT / "engine").glob("*.py")]:
        assert not [name for name in imported(path) if name.startswith("wal.tools")], path.name


@pytest.mark.parametrize("name", PURE)
def test_the_pure_modules_of_api_do_no_io(name: str) -> None:
    assert not imported(ROOT / name) & {"trio", "quart", "hypercorn", "socket", "os"}


def test_only_the_composition_root_and_the_command_line_know_the_engine_and_the_log() -> None:
    for path in (ROOT / "api").glob("*.py"):
        if path.name not in ("server.py", "cli.py"):
            reached = {name for name in imported(path) if name.startswith("wal") or name == "engine.actor"}
            assert reached <= (TOOLS_REACH if path.name in TOOLS else set()), path.name
