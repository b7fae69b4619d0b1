"""Thousands of connections that a process of its own keeps open, idle or parked.

with Crowd(server.host, server.port, 10_000, request, answered=False):
    ...

As a program (`python -m tests.bench.crowd HOST PORT COUNT answered|parked REQUEST`) it connects, sends a request
on each connection, says "there", and stays until its stdin ends.
"""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from types import TracebackType
from typing import Self

from tests.bench.peers import DIES_WITH_US, NotMeasured
from tests.harness.process import ROOT

TIMEOUT_S = 60.0


class Crowd:
    """The process, for as long as the `with` block lasts.

    Args:
        host: of the server.
        port: of the server.
        count: how many connections.
        request: what each sends once.
        answered: whether each waits for an answer, and is idle then; else it is parked.
    """

    def __init__(self, host: str, port: int, count: int, request: bytes, *, answered: bool) -> None:
        kind = "answered" if answered else "parked"
        words = [host, str(port), str(count), kind, request.decode()]
        self._command = [*DIES_WITH_US, sys.executable, "-m", "tests.bench.crowd", *words]
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "there\n":
            self._end()
            raise NotMeasured("the crowd of connections did not come about")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()


def allow_many_files() -> None:
    """Raises the limit of open files of this process, and of those that it starts, as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Connects, and stays."""
    host, port, count, kind, request = sys.argv[1:]
    allow_many_files()
    connections = []
    for _ in range(int(count)):
        connection = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        connection.sendall(request.encode())
        if kind == "answered":
            assert connection.recv(65_536)
        connections.append(connection)
    print("there", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
