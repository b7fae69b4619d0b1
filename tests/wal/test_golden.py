"""Data directories as released versions wrote them: they load for ever, with the very same state.

One folder a format version, in it a directory that was closed cleanly and one that crashed with a torn tail, and beside
each what it holds, in JSON. These files are never made again; a new format gets a new folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.embedded.recovery import recover
from engine.limits import Limits
from engine.store.state import State
from tests.harness import logs
from tests.harness.disk import FakeDisk
from wal.files import DiskDirectory
from wal.log import Log

GOLDEN = sorted(path for path in (Path(__file__).parents[1] / "golden").glob("v*/*") if path.is_dir())
NAMES = [f"{path.parent.name}-{path.name}" for path in GOLDEN]


def readable(value: Any) -> Any:
    """A dump as JSON has it."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    return [readable(item) for item in value] if isinstance(value, tuple | list) else value


def expected(golden: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(golden.with_suffix(".json").read_text())
    return found


def found(state: State, log: Log) -> dict[str, Any]:
    """What a start made of it, in the shape of the expected file."""
    return {
        "records": log.recovery.records,
        "time_ms": log.recovery.time_ms,
        "torn_bytes": log.recovery.torn_bytes,
        "entries": readable(list(state.dump())),
    }


def test_there_is_a_clean_and_a_crashed_directory_of_every_version() -> None:
    """A13"""
    assert NAMES == ["v1-clean", "v1-crashed", "v2-clean", "v2-crashed"]


@pytest.mark.parametrize("golden", GOLDEN, ids=NAMES)
def test_a_directory_of_a_released_version_loads_with_the_state_it_had(golden: Path, tmp_path: Path) -> None:
    """A13, I7: twice in a row, on a real disk."""
    path = tmp_path / "data"
    shutil.copytree(golden, path)
    path.chmod(0o700)
    for torn_bytes in (expected(golden)["torn_bytes"], 0):
        state, log = recover(DiskDirectory(path), Limits(), wall_ms=logs.TIME_MS)
        assert found(state, log) == expected(golden) | {"torn_bytes": torn_bytes}
        log.close()


@pytest.mark.parametrize("golden", GOLDEN, ids=NAMES)
def test_a_directory_of_a_released_version_can_be_written_on(golden: Path) -> None:
    """A13"""
    disk = FakeDisk()
    for file in golden.iterdir():
        disk.put(file.name, file.read_bytes())
    assert readable(logs.dump(disk)) == expected(golden)["entries"]
    assert logs.goes_on(disk)
