"""Starts server processes without the half second that Python and the imports take: as forks of one that has imported.

`launch` has the fork server, one for each test process, fork what `python -m api` would be from its first own line on.
It is a process of its own like any other: its own descriptors, environment and signal handlers, its own end. What a
fork cannot be is run under another program, or by a Python that begins differently: those are executed from nothing,
see `Server`. The fork server ends with the test process.

Between a fork and us stands its keeper, also a fork, which waits for its end and leaves the process in the system's
books until we have taken note, so that no signal can hit another process that got the number.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]

REQUEST_BYTES_MAX = 128 * 1024


spent: list[float] = []
"""CPU seconds of each fork that has ended: they are no children of ours, so the system does not tell."""


class Fork:
    """A process, with those methods of `subprocess.Popen` that tests use.

    Args:
        keeper: our end of the keeper's socket.
    """

    def __init__(self, keeper: socket.socket) -> None:
        self.args = "a fork"
        self.pid = int(keeper.recv(16))
        self._keeper = keeper
        self._lock = threading.Lock()
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, a signal's negated; None while it runs."""
        with self._lock:
            if self._code is None and self._ended_within(0):
                code, cpu_ticks = map(int, self._keeper.recv(64).split())
                self._keeper.close()
                self._code = code
                spent.append(cpu_ticks / os.sysconf("SC_CLK_TCK"))
            return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end, so many seconds; raises `subprocess.TimeoutExpired`."""
        if self._code is None:
            self._ended_within(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended_within(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._keeper, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))


def launch(
    arguments: Sequence[str],
    environment: dict[str, str],
    log: BinaryIO,
    streams: Sequence[int | None] | None = None,
) -> Fork:
    """Starts `python -m api`; without input, and with its output in a file, unless told otherwise.

    Args:
        arguments: behind that.
        environment: all of it.
        log: for both of its outputs.
        streams: descriptors for stdin, stdout and stderr instead; None is one that is closed.
    """
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    given = [descriptor for descriptor in streams or () if descriptor is not None]
    request = [arguments, environment, streams and [descriptor is not None for descriptor in streams]]
    with theirs:
        socket.send_fds(_control(), [json.dumps(request).encode()], [log.fileno(), theirs.fileno(), *given])
    return Fork(ours)


@cache
def _control() -> socket.socket:
    """Our end of the fork server's socket; when it is closed the fork server ends."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=ROOT, pass_fds=[theirs.fileno()])

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def main() -> None:
    """The fork server; returns in it when nobody wants forks any more, and in a fork when that has run."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    importlib.import_module("api.cli.main")
    importlib.import_module("engine.redis.engine")  # which is imported when it is asked for
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the keepers
    while True:
        request, descriptors, *_ = socket.recv_fds(control, REQUEST_BYTES_MAX, 5)
        if not request:
            return
        log, keeper, *given = descriptors
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if (pid := os.fork()) != 0:
                _keep(pid, socket.socket(fileno=keeper))
            os.close(keeper)
            break
        for descriptor in descriptors:
            os.close(descriptor)
    arguments, environment, streams = json.loads(request)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if streams is not None:
        _take(streams, given)
    _become(arguments, environment)


def _keep(pid: int, told: socket.socket) -> None:
    """Tells the number of a process, and later how it ended; does not return."""
    told.send(b"%d" % pid)
    end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert end is not None
    code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
    cpu_ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]  # its own and its children's
    told.send(b"%d %d" % (code, sum(map(int, cpu_ticks))))
    told.recv(1)  # nothing comes; it is closed over there
    os._exit(0)


def _take(streams: list[bool], given: list[int]) -> None:
    """Takes descriptors for those standard streams that are open; of the others Python says that there is none."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if streams[number]:
            descriptor = given.pop(0)
            os.dup2(descriptor, number)
            os.close(descriptor)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  # what Python knew was of another file
        else:
            setattr(sys, name, None)
            os.close(number)


def _become(arguments: list[str], environment: dict[str, str]) -> None:
    """Is `python -m api` from here on."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    runpy.run_module("api", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
