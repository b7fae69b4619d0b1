"""A forked server is told from one that was executed by nothing that a test looks at, and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.harness.process import EXECUTED, ROOT, Server
from tests.harness.waiting import wait_until

STARTER = """
import os, signal, sys
from pathlib import Path
from tests.harness.process import Server
server = Server(Path(sys.argv[1]))
server.start()
print(server.pid, int(Path(f"/proc/{server.pid}/stat").read_text().split()[3]), flush=True)
server.kill()
os.kill(os.getpid(), signal.SIGKILL)
"""


def descriptors(server: Server) -> list[str]:
    """What a server has open, without the numbers that differ anyway."""
    assert server.post({"command": "PING"})[0] == 200
    links = Path(f"/proc/{server.pid}/fd").iterdir()
    return sorted(re.sub(r"\d+|holdfast-\w+", "", str(link.readlink())) for link in links)


def signals(server: Server) -> list[str]:
    """Which signals a server has blocked, ignores and catches."""
    return re.findall(r"^Sig(?:Blk|Ign|Cgt):.*", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)


def test_a_fork_has_the_descriptors_and_the_signals_of_an_executed_one(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as forked:
        found = descriptors(forked), signals(forked)
        forked.stop()
    with Server(tmp_path / "data", under=EXECUTED) as executed:
        assert (descriptors(executed), signals(executed)) == found


def test_how_a_fork_ends_is_told(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        assert server.is_running
        server.signal(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        second = Server(tmp_path / "other", "--bind", "nowhere")
        second.launch()
        assert second.wait() == 2
        assert "nowhere" in second.log


def test_the_fork_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path / "data")]
    started = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert started.returncode == -signal.SIGKILL
    for pid in map(int, started.stdout.split()):
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}/exe").exists())  # type: ignore[misc]
