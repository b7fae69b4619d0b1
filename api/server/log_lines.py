"""The server's own log on stderr: written by a thread, so that whoever does not read it holds nobody up.

A pipe that is full, a terminal that is stopped, a disk that hangs: any of them blocks a write for as long as it likes.
So whoever logs leaves a line in a queue, and a thread writes. When the queue is full, lines are dropped, and how many
is said once somebody reads again. The end of the process waits for the thread, but not for long.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import sys
import threading
from typing import Any

LINES_MAX = 1_000
"""So many lines wait to be written; a traceback is one."""

FLUSH_S = 0.5
"""At its end the process waits so long for the lines that are left."""

FORMAT = "%(asctime)s %(levelname)s %(message)s"


def start_logging() -> None:
    """Has the process log to stderr, as everything does that Python itself would print there."""
    if sys.stderr is None:  # it was closed when the process began, and its descriptor may be anything by now
        logging.getLogger().addHandler(logging.NullHandler())
        return
    handler = LineWriter(sys.stderr.fileno())
    logging.basicConfig(handlers=[handler], level=logging.INFO, format=FORMAT)
    logging.captureWarnings(True)
    sys.unraisablehook = _log_unraisable


def _log_unraisable(found: Any) -> None:
    what = (found.exc_type, found.exc_value, found.exc_traceback)
    logging.getLogger("holdfast").error(
        "%s: %r", found.err_msg or "ignored an exception in", found.object, exc_info=what
    )


class LineWriter(logging.Handler):
    """Writes log lines to a descriptor, in a thread; whoever logs never waits for it.

    Args:
        descriptor: a file, pipe or terminal.
        lines_max: so many lines wait to be written, further ones are dropped.
    """

    def __init__(self, descriptor: int, lines_max: int = LINES_MAX) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | threading.Event] = queue.Queue(lines_max)
        self._dropped = 0
        self._counting = threading.Lock()  # the handler's own is held by whoever flushes
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Leaves a record to be written."""
        try:
            self._lines.put_nowait(self._encode(record))
        except queue.Full:
            self._drop(1)

    def flush(self) -> None:
        """Waits until what was logged is written, but not for long."""
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._lines.put(written, timeout=FLUSH_S)
            written.wait(FLUSH_S)

    def _encode(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
            elif self._write(line):
                self._tell_dropped()
            else:
                self._drop(1)

    def _tell_dropped(self) -> None:
        with self._counting:
            dropped, self._dropped = self._dropped, 0
        if dropped and not self._write(self._encode(_dropping(dropped))):
            self._drop(dropped)

    def _drop(self, count: int) -> None:
        with self._counting:
            self._dropped += count

    def _write(self, line: bytes) -> bool:
        """Writes a line, however long that takes; returns whether it could be written."""
        try:
            while line:
                line = line[self._write_some(line) :]
        except OSError:  # whoever read it has gone, or its disk is full
            return False
        return True

    def _write_some(self, line: bytes) -> int:
        try:
            return os.write(self._descriptor, line)
        except BlockingIOError:  # somebody who shares the descriptor wants it so
            select.select([], [self._descriptor], [])
            return 0


def _dropping(count: int) -> logging.LogRecord:
    what = "%d line%s of the log could not be written, and dropped"
    arguments = (count, "s" * (count != 1))
    return logging.LogRecord("holdfast.server", logging.WARNING, __file__, 0, what, arguments, None)
