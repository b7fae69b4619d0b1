"""What is seen of something long, after its first second: a bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from engine.replies import Error, Failure

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

QUIET_S = 1.0
"""What takes less than this shows nothing."""

REDRAW_S = 0.1

LINE_S = 10.0
"""Between two plain lines."""

Unit = Callable[[int], str]
"""Says how much there is in all."""


def megabytes(count: int) -> str:
    """So many bytes."""
    return f"{count / 1e6:,.0f} MB"


def keys_and_queues(count: int) -> str:
    """So many keys and queues."""
    return f"{count:,} keys and queues"


_logger = logging.getLogger("holdfast.server")


class ReplayStopped(Exception):
    """The replay was given up because the server was asked to stop."""


class Progress:
    """A `wal.replay.Progress` that draws; leaving the `with` block finishes the bar, at 100 % unless by an error.

    What it cannot draw, because nobody takes it, is left out.

    Args:
        label: what is being done.
        say: writes a plain line.
        unit: of what is counted.
    """

    def __init__(self, label: str, say: Callable[[str], None], unit: Unit = megabytes) -> None:
        self._label = label
        self._say = say
        self._unit = unit
        self._drawing = sys.stderr.isatty()
        self._next_s: float | None = None
        self._bar: ProgressBar[int] | None = None
        self._lock = threading.RLock()  # whoever logs, in whatever thread, finishes the bar

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish(is_done=kind is None)

    def finish(self, *, is_done: bool) -> None:
        """Ends the bar, if there is one; what is written next begins a line.

        Args:
            is_done: draws it to its end, whatever was told last.
        """
        with self._lock, contextlib.suppress(OSError):
            bar, self._bar = self._bar, None
            if bar is not None:
                bar.update((bar.length or 0) - bar.pos if is_done else 0)
                bar.render_finish()

    def __call__(self, done: int, total: int) -> None:
        """Shows how far it is, a few times a second; a total of 0 is not known."""
        if self._next_s is None:
            self._next_s = time.monotonic() + QUIET_S
        if time.monotonic() < self._next_s:
            return
        if self._drawing and total:
            with self._lock:
                self._draw(done, total)
            self._next_s = time.monotonic() + REDRAW_S
        else:
            far = f"{self._unit(total)}: {done / total:.0%}" if total else self._unit(done)
            self._say(f"{self._label} {far}")
            self._next_s = time.monotonic() + LINE_S

    def _draw(self, done: int, total: int) -> None:
        try:
            if self._bar is None or done < self._bar.pos:  # it began anew
                self.finish(is_done=True)
                self._bar = click.progressbar(length=total, label=self._label, file=sys.stderr)
                self._bar.__enter__()
            self._bar.length = total
            self._bar.update(done - self._bar.pos)
        except OSError:  # the terminal is gone
            self._drawing, self._bar = False, None


class Starting:
    """How far a start is, for whoever asks. Written by the thread that replays, and read by others at any time.

    Attributes:
        phase: what is being done.
        far: how much of it is done, as (bytes, bytes in all); None while that is not known. Replaced as a whole.
    """

    def __init__(self) -> None:
        self.phase = "starting"
        self.far: tuple[int, int] | None = None

    def readiness(self) -> Failure:
        """Why no commands are taken yet; has the form of `Face.readiness`."""
        far = self.far
        how_far = "" if far is None else f": {far[0] / max(far[1], 1):.0%} of {megabytes(far[1])}"
        return Failure(Error.UNAVAILABLE, self.phase + how_far)


class ReplayProgress(Progress):
    """Progress of a server's start.

    Args:
        stopped: asked now and then; True ends the replay with `ReplayStopped`.
        starting: is told as well.
    """

    def __init__(self, stopped: Callable[[], bool], starting: Starting) -> None:
        super().__init__("replaying", _logger.info)
        self._stopped = stopped
        self._starting = starting

    def __enter__(self) -> Self:
        for handler in logging.getLogger().handlers:
            handler.addFilter(self._make_room)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handler in logging.getLogger().handlers:
            handler.removeFilter(self._make_room)
        super().__exit__(kind, error, traceback)

    def _make_room(self, _record: logging.LogRecord) -> bool:
        """Begins a line for what is logged while a bar is drawn."""
        self.finish(is_done=False)
        return True

    def __call__(self, done: int, total: int) -> None:
        """Shows how far the replay is.

        Raises:
            ReplayStopped: the server was asked to stop.
        """
        if self._stopped():
            raise ReplayStopped
        self._starting.far = done, total
        super().__call__(done, total)
