"""The process that folds, as the server sees it: it is started, listened to, and ended.

It says that it goes on (`fold.TICK`), once a second while it does. One that says nothing for `SILENCE_MAX_S` is ended:
somebody has stopped it, or its disk hangs. A process that hangs in the kernel cannot even be killed: it is left behind,
and no other is started before it is gone.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from subprocess import PIPE

import trio

from engine.embedded.fold import TICK, child_command, unpack_result
from engine.face import FoldFailed
from wal.manifest import Snapshot
from wal.snapshot import FoldPlan

SILENCE_MAX_S = 60.0
"""It ticks once a second, and between two frames; a sync of one frame takes no minute on a disk that works."""

KILLED_WITHIN_S = 5.0
"""From SIGKILL to the end of a process that can be killed."""

MESSAGE_BYTES_MAX = 500
"""So much of the end of what a process says on stderr goes into the log."""


class Child:
    """A `Fold` that runs `engine.embedded.fold` in a process of its own.

    Args:
        directory: path of the data directory.
        silence_max_s: a process that says nothing for so many seconds is ended; also an attribute.
    """

    def __init__(self, directory: str, silence_max_s: float = SILENCE_MAX_S) -> None:
        self._directory = directory
        self.silence_max_s = silence_max_s
        self._left_behind: trio.Process | None = None

    async def __call__(self, plan: FoldPlan) -> Snapshot:
        """Writes the snapshot that a plan asks for.

        Raises:
            FoldFailed: another try may succeed.
            Damage, OSError: as the process found them.
        """
        if self._left_behind is not None and self._left_behind.poll() is None:
            raise FoldFailed(f"process {self._left_behind.pid} of an earlier one hangs, and cannot be killed")
        try:
            async with self._started() as process:
                return await self._talk(process, plan)
        except trio.TooSlowError:
            raise FoldFailed(f"its process made no progress for {self.silence_max_s:.0f} s, and was ended") from None

    @asynccontextmanager
    async def _started(self) -> AsyncIterator[trio.Process]:
        """A process that has ended when the block has, however that came about."""
        try:
            process = await trio.lowlevel.open_process(
                child_command(self._directory, os.getpid()), stdin=PIPE, stdout=PIPE, stderr=PIPE
            )
        except OSError as error:  # none of the disk's: the interpreter may have been replaced by an update
            raise FoldFailed(f"its process cannot be started: {error}") from error
        try:
            yield process
        finally:
            process.kill()
            with trio.move_on_after(KILLED_WITHIN_S, shield=True):
                await process.wait()
            self._left_behind = process if process.returncode is None else None
            with trio.CancelScope(shield=True):
                for stream in (process.stdin, process.stdout, process.stderr):
                    assert stream is not None
                    await trio.aclose_forcefully(stream)

    async def _talk(self, process: trio.Process, plan: FoldPlan) -> Snapshot:
        """Tells the process what to do, and hears what came of it; it reads before it writes, so one step at a time."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with trio.fail_after(self.silence_max_s):
                await process.stdin.send_all(plan.pack())
            await process.stdin.aclose()
        except trio.BrokenResourceError:
            pass  # it has ended already: why, its exit code says
        answer = await self._hear(process.stdout, TICK)
        message = await self._hear(process.stderr)
        with trio.fail_after(self.silence_max_s):
            code = await process.wait()
        if code < 0:
            raise FoldFailed(f"its process was ended by {_signal_name(-code)}")
        if code > 0:
            raise FoldFailed(f"its process failed: {message.decode(errors='replace').strip()[-MESSAGE_BYTES_MAX:]}")
        try:
            return unpack_result(answer)
        except (ValueError, TypeError) as error:
            raise FoldFailed(f"its process answered with what is no result: {error}") from error

    async def _hear(self, stream: trio.abc.ReceiveStream, ignored: bytes = b"") -> bytes:
        """All that a process says on a stream, but for the ticks before it."""
        said = b""
        with trio.fail_after(math.inf) as patience:
            while True:
                patience.deadline = trio.current_time() + self.silence_max_s
                data = await stream.receive_some()
                if not data:
                    return said
                said = (said + data).lstrip(ignored) if ignored else said + data


def _signal_name(number: int) -> str:
    """Name of a signal; the real-time ones have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
