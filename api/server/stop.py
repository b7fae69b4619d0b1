"""How a server comes to its end: the wish to stop, the signals that make it, and the timer that enforces it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import NoReturn

import trio

from engine.face import Face

EXIT_WITHIN_S = 5
"""From the first signal to the end of the process, whatever clients, disks or networks do."""

SAME_SIGNAL_S = 0.3
"""A signal that comes again so soon is the same one."""

_logger = logging.getLogger("holdfast.server")


class Interrupted(Exception):
    """Something was given up because the server was asked to stop."""


class Stop:
    """The wish to stop, and what follows from it.

    Args:
        late_code: the exit code when time is up and the engine has not ended.

    Attributes:
        engine: what runs, or is about to; None before there is one, when there is nothing to be lost either.
        engine_ended: set when it has come to a good end.
        wished: whether the wish has come.
    """

    def __init__(self, late_code: int) -> None:
        self.engine: Face | None = None
        self.engine_ended = trio.Event()
        self.wished = False
        self._late_code = late_code
        self._wished_s = 0.0
        self._event = trio.Event()
        self._interruptible: trio.CancelScope | None = None

    async def wait(self) -> None:
        """Waits for the wish."""
        await self._event.wait()

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Has the wish cancel what is done in the `with` block, which then raises Interrupted."""
        with trio.CancelScope() as scope:
            self._interruptible = scope
            if self.wished:
                scope.cancel()
            yield
        self._interruptible = None
        if scope.cancelled_caught:
            raise Interrupted

    async def watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        """Turns signals into the wish; the second one ends the process."""
        watched = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        with trio.open_signal_receiver(*watched) as signals:
            task_status.started()
            await self._follow(signals)

    async def _follow(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGUSR1:
                _logger.info("%s: %s", name, self._describe())
            elif number == signal.SIGHUP:
                _logger.info("%s: nothing to reload, going on", name)
            elif self.wished and time.monotonic() < self._wished_s + SAME_SIGNAL_S:
                pass  # sent to the process and to its group, as timeout(1) does
            elif self.wished:
                _logger.warning("%s again: exiting now", name)
                exit_now(128 + number)
            else:
                self.wish()
                _logger.info("%s: shutting down", name)

    def _describe(self) -> str:
        return "starting" if self.engine is None else json.dumps(dataclasses.asdict(self.engine.statistics()))

    def wish(self) -> None:
        """Starts the shutdown and the timer."""
        self.wished = True
        self._wished_s = time.monotonic()
        # Ten thousand clients that leave at once are garbage for seconds of collector runs; the process ends anyway.
        gc.disable()
        self._event.set()
        if self._interruptible is not None:
            self._interruptible.cancel()
        self.arm(EXIT_WITHIN_S, self._late_code)

    def arm(self, within_s: float, code: int) -> None:
        """Ends the process after so many seconds, with 0 if the engine has come to a good end, with `code` if not.

        A timer that would end it earlier stays as it is.
        """

        def end(_number: int, _frame: FrameType | None) -> None:
            # Not by the log: that nobody reads it may be what holds us up.
            with contextlib.suppress(OSError):
                os.set_blocking(2, False)
                os.write(2, b"something held the exit up for %d s; ending now\n" % within_s)
            os._exit(0 if self.engine is None or self.engine_ended.is_set() else code)

        left_s = signal.getitimer(signal.ITIMER_REAL)[0]
        if 0 < left_s < within_s:
            return
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, within_s)


def exit_now(code: int) -> NoReturn:
    """Ends the process without the interpreter's own tear-down.

    Freeing a store of millions of keys one by one takes seconds.
    """
    logging.shutdown()
    os._exit(code)
