"""A worker of the documentation, as a reader starts it, and all its processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.docs.pages import PROGRAMS, programs
from tests.harness.waiting import wait_until

PAGES = ("README.md", "docs/clients.md")
"""Pages that have workers: all their programs whose names begin so."""

WORKERS = [(page, name) for page in PAGES for name in programs(page) if name.startswith("worker")]

LEAVES_WITHIN_S = 20.0
"""For all processes of a worker that was killed, on a busy machine; far from the minute that a pop of theirs waits."""

_DONE = re.compile(r"working on .*\bid\W+(\d+).*\n")


class Worker:
    """One worker, and what it has said.

    Args:
        page: where it is documented.
        name: of its file.
        port: where the server listens, in place of 8080.
        scratch: a directory for it; its output is added to what others have said there.
        tools: a directory of programs that it finds before all others.
    """

    def __init__(self, page: str, name: str, port: int, scratch: Path, tools: Path | None = None) -> None:
        self._path = f"{tools}:{os.environ['PATH']}" if tools else os.environ["PATH"]
        self._file = scratch / name
        for file, text in programs(page).items():
            (scratch / file).write_text(text.replace(":8080", f":{port}"))
        self._out, self._log = scratch / "out", scratch / "log"
        self._out.touch()
        self._log.touch()
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.end()

    def start(self) -> None:
        """Starts it, in a session of its own, by which its processes are known."""
        with self._out.open("ab") as out, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAMS[self._file.suffix], self._file.name],
                cwd=self._file.parent,
                env=os.environ | {"PATH": self._path},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    @property
    def done(self) -> list[int]:
        """The ids of the jobs that it, and those who share its directory, have done."""
        return [int(found) for found in _DONE.findall(self._out.read_text())]

    @property
    def log(self) -> str:
        """Its complaints."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process that was started is there."""
        return self._process.poll() is None

    def processes(self) -> list[int]:
        """All processes of it that run, also those whose parents do not; the one that was started comes first."""
        return sorted(int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_mine(path))

    def wait(self) -> int:
        """Returns the exit code of the process that was started when it has ended by itself."""
        wait_until(lambda: not self.is_running, lambda: f"it goes on: {self.log}")
        return self._process.returncode

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kills the process that was started, if it runs, and returns when no other process of it is left."""
        self._process.send_signal(number)
        self._process.wait(60)
        wait_until(
            lambda: not self.processes(), lambda: f"it leaves processes behind: {self.log}", within_s=LEAVES_WITHIN_S
        )

    def _is_mine(self, process: Path) -> bool:
        with suppress(OSError):  # it has ended
            state, _parent, _group, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            return int(session) == self.pid and state != "Z"
        return False
