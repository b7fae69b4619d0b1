"""From a data directory to a state and its log: the one place where replay meets the state machine."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from engine.limits import Limits
from engine.store.ops import BadOp
from engine.store.state import State
from wal.files import Directory
from wal.frame import Frame
from wal.log import SEGMENT_BYTES_MAX, Log
from wal.replay import Apply, Progress

FREE_VALUES = 1_000_000
"""Values of removed queues freed at once; nobody waits for anything else here."""


def recover(
    directory: Directory,
    limits: Limits,
    *,
    wall_ms: int,
    segment_bytes_max: int = SEGMENT_BYTES_MAX,
    progress: Progress | None = None,
) -> tuple[State, Log]:
    """Replays a data directory. Blocks for as long as that takes, so servers run it in a thread.

    Args:
        directory: locked by the caller; the log that is returned owns it. When this raises, the caller closes it.
        limits: the memory cap is the state's.
        wall_ms: the wall clock, milliseconds since 1970.
        segment_bytes_max: size at which segments of the log roll.
        progress: told (bytes read, bytes in all); may raise to stop.

    Returns:
        The state as it was, and the log open for appending.

    Raises:
        Damage, NewerFormat, OSError: see `Log.recover`.
    """
    state = State(limits.memory_bytes_max)
    with no_collector():
        log = Log.recover(
            directory, applying(state), time_ms=wall_ms, segment_bytes_max=segment_bytes_max, progress=progress
        )
        state.order_deadlines()
    return state, log


@contextmanager
def no_collector() -> Iterator[None]:
    """A replay makes no cycles, and millions of objects that the collector would look at again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def applying(state: State) -> Apply:
    """Returns what applies the frames of a log to a state; it raises ValueError for records that do not fit."""

    def apply(frame: Frame) -> None:
        try:
            state.replay(frame.records)
        except BadOp as error:
            raise BadOp(f"record {frame.first_lsn + error.index}: {error}") from error
        while state.has_garbage:
            state.free_garbage(FREE_VALUES)

    return apply
