"""The real process as containers run it: a root file system that cannot be written, and as their first process.

Each test has namespaces of its own, which takes root, or a system where anybody may make user namespaces.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.server.orphans import LOOK_S
from tests.harness.process import ROOT, Server, beginning_with
from tests.harness.waiting import WITHIN_S, wait_until

UNSHARE = ("unshare",) if os.geteuid() == 0 else ("unshare", "--map-root-user")

FIRST_PROCESS = (*UNSHARE, "--pid", "--fork", "--kill-child", "--mount-proc")

READ_ONLY = """
set -e
mount --make-rprivate /
mount --bind "$DATA" "$DATA"
mount -o remount,bind,ro /
for place in /tmp /var/tmp /dev/shm; do
    if touch "$place/holdfast-test" 2> /dev/null; then mount -t tmpfs -o ro none "$place"; fi
done
exec "$@"
"""
"""Only the data directory can be written."""


def test_on_a_read_only_root_without_a_place_for_temporary_files_all_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    monkeypatch.setenv("DATA", str(data))
    monkeypatch.setenv("TMPDIR", "/" + "long/" * 50)  # longer than the name of a Unix socket may be
    with Server(data, under=(*UNSHARE, "--mount", "sh", "-c", READ_ONLY, "sh")) as server:
        with pytest.raises(OSError, match="Read-only"):
            Path(f"/proc/{server.pid}/root{tmp_path}/file").touch()
        assert server.post({"command": "SET k v"})[0] == 200
        assert server.get("/livez")[0] == 200
        assert server.get("/readyz")[0] == 200
        assert server.get("/stats")[1]["keys"] == 1
        assert server.post(b"", "/checkpoint")[0] == 200
        server.stop()
        assert "WARNING" not in server.log


def children_of(pid: int) -> dict[int, str]:
    """The children of a process, each with the letter of its state."""
    found = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread, or the process, has just gone
            for child in children.read_text().split():
                found[int(child)] = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
    return found


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Server]:
    """A server that is the first process of a namespace; the process that the fixture knows has made that."""
    with Server(tmp_path / "data", under=(*FIRST_PROCESS, "env")) as server:
        yield server


@pytest.mark.costly("two checkpoints, and twice the time between two looks for orphans")
def test_as_the_first_process_it_takes_every_ended_child_out_of_the_table(first: Server) -> None:
    """H1: its own, and those whose parents have ended; and it stops at SIGTERM."""
    [pid] = children_of(first.pid)
    for _ in range(2):
        assert first.post({"command": "SET k v"})[0] == 200
        assert httpx.post(f"{first.url}/checkpoint", timeout=WITHIN_S, trust_env=False).status_code == 200
    assert children_of(pid) == {}
    inside = ["nsenter", f"--target={pid}", "--pid", "--mount"]
    if os.geteuid() != 0:
        inside += ["--user", "--preserve-credentials"]
    subprocess.run([*inside, "sh", "-c", "(sleep 0.1 &); (sleep 0.1 &); (sleep 1000 &)"], check=True, timeout=WITHIN_S)
    wait_until(lambda: list(children_of(pid).values()).count("Z") == 2)
    began_s = time.monotonic()
    wait_until(lambda: list(children_of(pid).values()) == ["S"])
    assert time.monotonic() - began_s < 3 * LOOK_S + WITHIN_S / 2
    os.kill(pid, signal.SIGTERM)
    assert first.wait() == 0
    assert "stopped, everything is on disk" in first.log


IMPORTS_FOR_EVER = """
import importlib, time
from pathlib import Path

def import_module(_name):
    Path({begun!r}).touch()
    time.sleep(1000)

importlib.import_module = import_module
"""


def test_as_the_first_process_it_can_be_stopped_before_it_has_begun(tmp_path: Path) -> None:
    """H1: the system gives the first process only the signals that it asks for."""
    begun = tmp_path / "begun"
    program = beginning_with(IMPORTS_FOR_EVER.format(begun=str(begun)), tmp_path)
    entry = (sys.executable, str(ROOT / "api/cli/entry.py"))
    server = Server(tmp_path / "data", under=(*FIRST_PROCESS, *program), program=entry)
    server.launch()
    try:
        wait_until(begun.exists)
        [pid] = children_of(server.pid)
        os.kill(pid, signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
    finally:
        if server.is_running:
            server.kill()
    assert not (tmp_path / "data").exists()
