"""Who may import whom: api -> engine -> wal, never back; each library where it belongs and nowhere else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.process import ROOT

LAYERS = ("wal", "engine", "api")
ALLOWED_THIRD_PARTY = {
    "wal": {"msgpack"},
    "engine": {"msgpack", "sortedcontainers"},
    "engine/embedded/actor.py": {"trio"},
    "engine/embedded/checkpointer.py": {"trio"},
    "engine/embedded/clock.py": {"trio"},
    "engine/redis/engine.py": {"coredis", "trio"},
    "engine/embedded/commit_thread.py": {"trio"},
    "engine/embedded/committer.py": {"trio"},
    "engine/face.py": {"trio"},
    "engine/embedded/mailbox.py": {"trio"},
    "engine/redis": {"coredis", "trio"},
    "engine/sleeper.py": {"trio"},
    "api": {"click", "h11", "httptools", "hypercorn", "quart", "quart_trio", "trio", "werkzeug"},
}
PURE = (
    *(f"api/{name}.py" for name in ("access", "answers", "batches", "dialects", "json_body", "json_list", "line")),
    *("api/cli/export_lines.py", "engine/moving/items.py", "engine/moving/move.py", "engine/moving/tally.py"),
    *(f"engine/redis/{name}.py" for name in ("batches", "endpoint", "errors", "format", "request", "slots")),
)
TOOLS = ("moving.py", "reporting.py", "tool_output.py", "tools.py")
TOOLS_REACH = {
    f"wal.{name}"
    for name in (
        *("files", "frame", "replay", "segment"),
        *("tools.backup", "tools.check", "tools.dump", "tools.repair", "tools.view"),
    )
}
"""The tools read logs, and mend them; they neither open one for appending nor run an engine."""
ENGINES = ("engine.embedded.actor", "engine.redis.engine")
COMPOSITION = ("server.py", "embedded.py", "clustered.py", "cli.py")
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
    places = (layer, str(path.parent.relative_to(ROOT)), name)
    third_party = set().union(*(ALLOWED_THIRD_PARTY.get(place, set()) for place in places))
    assert tops <= set(sys.stdlib_module_names) | below | third_party


def test_only_files_py_touches_the_file_system() -> None:
    for path in (ROOT / "wal").rglob("*.py"):
        assert path.name == "files.py" or not imported(path) & {"os", "io", "pathlib", "shutil", "fcntl"}


def test_the_log_does_not_know_its_tools() -> None:
    for path in [*(ROOT / "wal").glob("*.py"), *(ROOT / "engine").glob("*.py")]:
        assert not [name for name in imported(path) if name.startswith("wal.tools")], path.name


def test_the_engines_do_not_know_of_moving_house() -> None:
    """What moves uses the log, and the connections to Redis; they do not use it."""
    moving = [ROOT / "engine" / "redis" / f"{name}.py" for name in ("masters", "moving", "scan")]
    for path in [*(ROOT / "engine").glob("*.py"), *(ROOT / "engine/redis").glob("*.py")]:
        if path not in moving:
            assert not [name for name in imported(path) if name.startswith("engine.moving")], path.name


def test_the_engine_on_redis_knows_neither_the_log_nor_the_embedded_engine() -> None:
    for path in [ROOT / "engine/redis/engine.py", *(ROOT / "engine/redis").glob("*.py")]:
        foreign = {
            name
            for name in imported(path)
            if name.startswith("wal") or name in ("engine.embedded.actor", "engine.store.state")
        }
        assert not foreign, path.name


def test_the_embedded_engine_and_the_log_know_nothing_of_redis() -> None:
    for path in [*(ROOT / "wal").rglob("*.py"), *(ROOT / "engine").glob("*.py")]:
        if path.name != "cluster.py":
            assert not [name for name in imported(path) if name.startswith(("engine.redis", "engine.redis.engine"))], (
                path.name
            )


@pytest.mark.parametrize("name", PURE)
def test_the_pure_modules_do_no_io(name: str) -> None:
    tops = {module.split(".")[0] for module in imported(ROOT / name)}
    assert not tops & {"coredis", "trio", "quart", "hypercorn", "socket", "os"}


def test_only_the_composition_root_and_the_command_line_know_an_engine_and_the_log() -> None:
    for path in (ROOT / "api").glob("*.py"):
        if path.name not in COMPOSITION:
            reached = {name for name in imported(path) if name.startswith("wal") or name in ENGINES}
            assert reached <= (TOOLS_REACH if path.name in TOOLS else set()), path.name


def test_the_library_for_redis_is_not_imported_before_it_is_needed() -> None:
    """It takes 0.2 s, and is not installed with the embedded engine."""
    program = "import api.cli.main, sys; print([name for name in sys.modules if name.split('.')[0] == 'coredis'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
