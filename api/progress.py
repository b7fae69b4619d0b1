"""What is seen of something long, after its first second: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import Self

import click

QUIET_S = 1.0
"""What takes less than this shows nothing."""

REDRAW_S = 0.1

LINE_S = 10.0
"""Between two plain lines."""

_logger = logging.getLogger("holdfast.server")


class ReplayStopped(Exception):
    """The replay was given up because the server was asked to stop."""


class Progress(contextlib.ExitStack):
    """A `wal.replay.Progress` that draws; leaving the `with` block finishes the bar.

    Args:
        label: what is being done.
        say: writes a plain line.
    """

    def __init__(self, label: str, say: Callable[[str], None]) -> None:
        super().__init__()
        self._label = label
        self._say = say
        self._drawing = sys.stderr.isatty()
        self._next_s: float | None = None
        self._advance: Callable[[int], None] | None = None
        self._shown_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Shows how far it is, a few times a second."""
        if self._next_s is None:
            self._next_s = time.monotonic() + QUIET_S
        if time.monotonic() < self._next_s:
            return
        if self._drawing:
            self._draw(done_bytes, total_bytes)
            self._next_s = time.monotonic() + REDRAW_S
        else:
            self._say(f"{self._label} {total_bytes / 1e6:,.0f} MB: {done_bytes / max(total_bytes, 1):.0%}")
            self._next_s = time.monotonic() + LINE_S

    def _draw(self, done_bytes: int, total_bytes: int) -> None:
        if self._advance is None or done_bytes < self._shown_bytes:  # it began anew
            self.close()
            bar = click.progressbar(length=total_bytes, label=self._label, file=sys.stderr)
            self._advance, self._shown_bytes = self.enter_context(bar).update, 0
        self._advance(done_bytes - self._shown_bytes)
        self._shown_bytes = done_bytes


class ReplayProgress(Progress):
    """Progress of a server's start.

    Args:
        stopped: asked now and then; True ends the replay with `ReplayStopped`.
    """

    def __init__(self, stopped: Callable[[], bool]) -> None:
        super().__init__("replaying", _logger.info)
        self._stopped = stopped

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Shows how far the replay is.

        Raises:
            ReplayStopped: the server was asked to stop.
        """
        if self._stopped():
            raise ReplayStopped
        super().__call__(done_bytes, total_bytes)
