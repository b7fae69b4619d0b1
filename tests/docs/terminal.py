"""A terminal in a small world of its own: what a page has its readers type is typed there as it stands.

The world is made of namespaces: on its loopback every port is free, also 8080; `/var/lib` and `/mnt`
are empty disks; and with its shell every process in it ends. The shell is an interactive bash behind a pseudo-terminal,
so that programs see a terminal, and Ctrl-C is a key.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import termios
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_S = 60.0
"""For the output of one command, on a busy machine."""

_PROMPT = re.compile(rb"\x1e(\d+)\x1e$")
"""What the shell is told to prompt with: the exit code of what was before."""

_WORLDS = (
    ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
    ("unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
"""As root, and as anybody where user namespaces are allowed."""

_SETUP = """\
import fcntl, os, socket, struct, subprocess, sys

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 1, 64
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP | IFF_RUNNING))
for place in ("/var/lib", "/mnt"):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], check=True)
os.execvp("setsid", ["setsid", "--ctty", "bash", "--noprofile", "--norc", "--noediting", "-i"])
"""


class Terminal:
    """A shell in a world of its own.

    Args:
        home: the directory it is in, and that of its user.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._output = b""
        self._terminal: int
        self._shell: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        complaints = []
        for world in _WORLDS:
            self._open(world)
            try:
                self._read_until_prompt()
            except AssertionError as problem:
                complaints.append(str(problem))
                self._close()
            else:
                return self
        raise AssertionError(f"root, or user namespaces, are needed: {complaints}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def type(self, command: str) -> tuple[str, int]:
        """Types a command and returns what it prints, and its exit code."""
        self._press(command + "\n")
        return self._read_until_prompt()

    def type_until(self, command: str, shown: re.Pattern[str]) -> str:
        """Types a command, presses Ctrl-C when it has printed what is shown, and returns what it printed before."""
        self._press(command + "\n")
        while not shown.fullmatch(printed := self._output.decode(errors="replace")):
            self._read("it prints something else than is shown")
        self._press("\x03")
        self._read_until_prompt()
        return printed

    def _open(self, world: tuple[str, ...]) -> None:
        self._output = b""
        self._terminal, tty = os.openpty()
        modes = termios.tcgetattr(tty)
        modes[1] &= ~termios.OPOST  # newlines stay what they are
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(tty, termios.TCSANOW, modes)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self._home),
            "LANG": "C.UTF-8",
            "PS1": "\x1e$?\x1e",
            "PS2": "",
            "TERM": "dumb",
        }
        self._shell = subprocess.Popen(
            [*world, sys.executable, "-c", _SETUP],
            cwd=self._home,
            stdin=tty,
            stdout=tty,
            stderr=tty,
            env=environment,
            start_new_session=True,
        )
        os.close(tty)

    def _close(self) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._terminal)

    def _press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def _read_until_prompt(self) -> tuple[str, int]:
        while (prompt := _PROMPT.search(self._output)) is None:
            self._read("it does not end")
        printed, self._output = self._output[: prompt.start()], b""
        return printed.decode(), int(prompt[1])

    def _read(self, complaint: str) -> None:
        ready, _, _ = select.select([self._terminal], [], [], PATIENCE_S)
        try:
            more = os.read(self._terminal, 65536) if ready else b""
        except OSError:  # the shell has ended
            more = b""
        assert more, f"{complaint}: {self._output.decode(errors='replace')}"
        self._output += more
