"""The console script, as it is installed, in a user's project that has packages of the same names as ours."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.harness.process import ROOT, Server

SCRIPT = Path(sys.executable).with_name("holdfast")
WITHIN_S = 60


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with an `api`, an `engine` and a `wal`, none of which is ours, and a client of Holdfast's."""
    project = tmp_path / "project"
    for name in ("api", "engine", "wal"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("raise ImportError('this is the one of the project')")
    (project / "holdfast.py").write_text("raise ImportError('this is the client of the project')")
    return project


def script(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the script in the project."""
    environment = os.environ | {"PYTHONPATH": "."}
    return subprocess.run(
        [SCRIPT, *words], cwd=project, env=environment, capture_output=True, text=True, timeout=WITHIN_S
    )


def test_the_script_is_not_led_astray_by_the_packages_of_a_project(project: Path) -> None:
    done = script(project, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"holdfast, version {version('holdfast')}\n"


def test_nor_is_a_server_with_its_child(project: Path) -> None:
    under = ("env", "--chdir", str(project), "PYTHONPATH=.")
    with Server(project / "data", "--segment-size", "64KiB", under=under, program=[str(SCRIPT)]) as server:
        assert server.post({"command": "SET hello world"}) == (200, None)
        assert server.post({"command": "QPUSH jobs job"}) == (200, None)
        done = script(project, "checkpoint", "--bind", f"{server.host}:{server.port}")
        assert (done.returncode, done.stderr) == (0, "")
        assert server.get("/stats")[1]["checkpoints"] == 1
        server.stop()
        server.start()
        assert server.post({"command": "GET hello"}) == (200, {"value": "world"})
        assert server.post({"command": "QPOP jobs"}) == (200, {"value": "job"})
        server.stop()


@pytest.mark.parametrize("name", ["api", "engine", "wal"])
def test_our_packages_import_nothing_by_themselves(name: str) -> None:
    """While they are imported, whatever is installed comes before the standard library."""
    assert [type(node) for node in ast.parse((ROOT / name / "__init__.py").read_text()).body] == [ast.Expr]
