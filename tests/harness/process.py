"""The real server process, real files, real HTTP: start it, speak to it, kill it, start it again.

with Server(tmp_path / "data") as server:
    server.post({"command": "SET hello world"})
    server.kill()
    server.start()
    assert server.post({"command": "GET hello"}) == (200, {"value": "world"})
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.harness.fork_server import ROOT as ROOT
from tests.harness.fork_server import Fork, launch

EXECUTED = ("env",)
"""Words for `under`: as it is, but executed from nothing."""

START_WITHIN_S = 60.0
END_WITHIN_S = 60.0
"""Both for a busy machine."""

_LISTENING = re.compile(r"listening on http://([0-9.]+):([0-9]+)")


class Server:
    """One data directory, or a front of Redis, and the server processes that come and go on it.

    Args:
        data: the data directory; of a front only what its log is called by.
        options: further options of `holdfast serve`.
        engine: URL of the Redis that a front keeps its data in; None is the embedded engine.
        under: a command and its options that run the server, like strace; it must leave it the process we started.
        program: words that run Holdfast's command line, if not those of `python -m api`.

    Without the last two, the server is a fork of a process that has imported it already, which saves half a second.
    """

    def __init__(
        self,
        data: Path,
        *options: str,
        engine: str | None = None,
        under: Sequence[str] = (),
        program: Sequence[str] = (),
    ) -> None:
        self.data = data
        self.log_file = data.parent / f"{data.name}.log"
        self.host, self.port = "127.0.0.1", 0
        self.engine = engine
        self.under = under
        self._program = program
        self._options = options
        self._process: subprocess.Popen[bytes] | Fork | None = None
        self._client = httpx.Client(timeout=60, trust_env=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()
        self._client.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether there is a process that has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the last process wrote to stderr."""
        return self.log_file.read_text()

    def launch(self) -> None:
        """Starts the process without waiting for it."""
        place = ("--data", str(self.data)) if self.engine is None else ("--engine", self.engine)
        bind = () if "--bind" in self._options else ("--bind", "127.0.0.1:0")
        arguments = ["serve", *place, *bind, *self._options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        with self.log_file.open("wb") as log:
            if self.under or self._program:
                command = [*self.under, *(self._program or (sys.executable, "-m", "api")), *arguments]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env=environment
                )
            else:
                self._process = launch(arguments, environment, log)

    def start(self) -> None:
        """Starts the process and returns when it says where it listens."""
        self.launch()
        deadline_s = time.monotonic() + START_WITHIN_S
        while (found := _LISTENING.search(self.log)) is None:
            code = self._process.poll() if self._process else None
            assert code is None, f"the server ended with {code}:\n{self.log}"
            assert time.monotonic() < deadline_s, f"the server did not start:\n{self.log}"
            time.sleep(0.01)  # a process has no event to wait for
        self._check_beginning()
        self.host, self.port = found[1], int(found[2])

    def signal(self, number: signal.Signals) -> None:
        """Sends the process a signal."""
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)

    def wait(self, within_s: float = END_WITHIN_S) -> int:
        """Waits for the process to end and returns its exit code; one that does not end is killed, and that fails."""
        process, self._process = self._process, None
        assert process is not None, "the server is not running"
        try:
            code = process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the server did not end within {within_s} s:\n{self.log}") from None
        self._check_beginning()
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """SIGTERM, and the process must end well."""
        self.signal(signal.SIGTERM)
        code = self.wait()
        assert code == 0, f"the server ended with {code}:\n{self.log}"

    def post(self, body: Any, path: str = "") -> tuple[int, Any]:
        """Sends a JSON body, or bytes as they are; returns status and decoded answer, None for an empty one."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = self._client.post(self.url + path, content=content)
        return response.status_code, response.json() if response.content else None

    def get(self, path: str) -> tuple[int, Any]:
        """Status and decoded answer of a GET."""
        response = self._client.get(self.url + path)
        return response.status_code, response.json()

    def _check_beginning(self) -> None:
        """Python goes on without a program that `beginning_with` gave it, if that fails, and only says so."""
        assert "Error in sitecustomize" not in self.log, self.log


def child_of(server: Server) -> int | None:
    """The process that a server has started, if there is one."""
    for children in Path(f"/proc/{server.pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            if found := children.read_text().split():
                return int(found[0])
    return None


def beginning_with(program: str, scratch: Path) -> tuple[str, ...]:
    """Words for `under`: Python, that of the server and that of its checkpoints, runs a program of the test's first.

    Args:
        program: may change what it imports.
        scratch: a directory for it.
    """
    (scratch / "sitecustomize.py").write_text(program)
    return ("env", f"PYTHONPATH={scratch}:{ROOT}")


_STOPPING = """
import os, signal, sys
from pathlib import Path
from wal.files import DiskDirectory

create, mark = DiskDirectory.create, Path({mark!r})

def create_and_stop(self, name):
    file = create(self, name)
    mark.touch()
    os.kill(os.getpid(), signal.SIGSTOP)
    return file

if any("engine.embedded.fold" in word for word in sys.orig_argv) and not mark.exists():
    DiskDirectory.create = create_and_stop
"""


def stopping_in_a_checkpoint(scratch: Path) -> tuple[str, ...]:
    """Words for `under`: the first process of a checkpoint stops, as by SIGSTOP, when it has created its file.

    By itself it would be done before a busy machine lets the test come.

    Args:
        scratch: a directory; there is a file `mark` in it once the process is about to stop.
    """
    return beginning_with(_STOPPING.format(mark=str(scratch / "mark")), scratch)
