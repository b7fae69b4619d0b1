"""What is seen of a long replay, after its first second: a bar when stderr is a terminal, else one line in the log."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable
from typing import Self

import click

QUIET_S = 1.0
"""A replay shorter than this shows nothing."""

REDRAW_S = 0.1

_logger = logging.getLogger("holdfast.server")


class ReplayStopped(Exception):
    """The replay was given up because the server was asked to stop."""


class ReplayProgress(contextlib.ExitStack):
    """A `wal.replay.Progress` that draws; leaving the `with` block finishes the bar.

    Args:
        stopped: asked now and then; True ends the replay with `ReplayStopped`.
    """

    def __init__(self, stopped: Callable[[], bool]) -> None:
        super().__init__()
        self._stopped = stopped
        self._drawing = sys.stderr.isatty()
        self._next_s = time.monotonic() + QUIET_S
        self._advance: Callable[[int], None] | None = None
        self._shown_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Draws how far the replay is, a few times a second.

        Raises:
            ReplayStopped: the server was asked to stop.
        """
        if self._stopped():
            raise ReplayStopped
        if time.monotonic() < self._next_s:
            return
        if not self._drawing:
            _logger.info("replaying %.0f MB", total_bytes / 1e6)
            self._next_s = math.inf
            return
        if self._advance is None:
            bar = click.progressbar(length=total_bytes, label="replaying", file=sys.stderr)
            self._advance = self.enter_context(bar).update
        self._advance(done_bytes - self._shown_bytes)
        self._shown_bytes = done_bytes
        self._next_s = time.monotonic() + REDRAW_S
