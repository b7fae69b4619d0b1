"""What the first process of a container owes the others: processes that lost their parent are its children.

When they end, they stay in the system's table until their parent asks for their exit code. Those that `docker exec` or
a probe leaves behind would fill it up.

A child of our own is never taken: whoever started it waits for it, and does so at once when it ends. So what has ended
before one look and is still there at the next is nobody's. No signal is needed for that, and no list of children.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import trio

LOOK_S = 5.0
"""Between two looks. A child of our own is waited for within a turn of the event loop."""

_TURNS = 3
"""Turns of the event loop that are let pass first, should the process have been stopped for long."""


def is_first_process() -> bool:
    """Whether processes that lose their parent become our children, as those of a container without an init do."""
    return os.getpid() == 1


async def reap_orphans() -> None:
    """Takes ended children that nobody waits for out of the system's table, until it is cancelled."""
    seen: set[int] = set()
    while True:
        await trio.sleep(LOOK_S)
        for _ in range(_TURNS):
            await trio.lowlevel.checkpoint()
        ended = {pid for pid in _children() if _has_ended(pid)}
        for pid in ended & seen:
            _reap(pid)
        seen = ended


def _children() -> set[int]:
    found: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended; or the descriptors have run out, and there is a next look
            found.update(map(int, file.read_text().split()))
    return found


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
