"""Folds a snapshot and the segments after it into a new snapshot: the part of a checkpoint that takes time.

The server runs it in a process of its own (`child_command`), so that the actor never stops and its memory is given
back. The process reads the plan from stdin, and writes to stdout what came of it. It opens the directory beside the
server, verifies every checksum of what it reads, and writes under a name of its own; it is the server that makes the
result part of the log. If the server dies, so does this process, and leaves nothing.

It takes as much memory as the data. Where memory is short, it goes before the server does: the kernel is told to choose
this process first, and where a container has a limit, it takes no more than that leaves.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack

from engine.embedded import memory_limit
from engine.embedded.recovery import applying
from engine.store import ops
from engine.store.state import State
from wal.files import Directory, DiskDirectory
from wal.manifest import Snapshot
from wal.replay import replay_sealed
from wal.segment import Damage
from wal.snapshot import FoldPlan, write_snapshot

CHECK_RECORDS = 64
"""Records written between two looks at whether the server still lives; each may be as long as a whole frame."""

NICENESS = 10
"""The server comes first."""

TICK = b"\0"
"""Said on stdout before the result, which begins with another byte, once in `TICK_S` while there is progress."""

TICK_S = 1.0

MEMORY_SHARE = 0.9
"""This part of what a container's limit leaves may be taken; the server may need the rest meanwhile."""

_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import engine, wal; del sys.path[0];"
    " from engine.embedded.fold import main; main()"
)
"""Our packages are imported from where the server has them, whatever PYTHONPATH leads to (see api/cli/entry.py)."""


class Orphaned(Exception):
    """The server is gone."""


def fold(directory: Directory, plan: FoldPlan, check: Callable[[], None] = lambda: None) -> Snapshot:
    """Replays what a plan names, and writes the snapshot; without a clock, so that expired keys stay until swept.

    Args:
        directory: the data directory; another process may have it locked.
        plan: what to fold.
        check: called now and then; may raise to give up.

    Returns:
        The snapshot, durable under its temporary name.

    Raises:
        Damage: what is to be folded is not what was written.
        OSError: reading or writing failed.
    """
    state = State()
    apply = applying(state)
    found = replay_sealed(directory, plan, apply, lambda _done, _total: check())
    return write_snapshot(directory, plan, _records(state, check), found.time_ms)


def _records(state: State, check: Callable[[], None]) -> Iterator[bytes]:
    for number, op in enumerate(state.snapshot_ops()):
        if number % CHECK_RECORDS == 0:
            check()
        yield ops.pack(op)


def child_command(directory: str, parent: int) -> list[str]:
    """The command that folds in a process of its own; takes `plan.pack()`, and gives what `unpack_result` takes.

    Args:
        directory: path of the data directory.
        parent: id of the process that starts it, without which it ends.
    """
    root = str(Path(__file__).parents[2])
    return [sys.executable, "-P", "-c", _PROGRAM, root, directory, str(parent)]  # -P: nor whatever the cwd holds


def pack_result(outcome: Snapshot | Damage | OSError) -> bytes:
    """What came of it, as bytes for the server."""
    fields: tuple[Any, ...]
    if isinstance(outcome, Snapshot):
        fields = ("snapshot", outcome.number, outcome.snapshot_id, outcome.size_bytes, outcome.time_ms)
    elif isinstance(outcome, Damage):
        fields = ("damage", outcome.directory, outcome.file, outcome.offset, outcome.lsn, outcome.reason)
    else:
        fields = ("error", outcome.errno, outcome.strerror or str(outcome), outcome.filename)
    packed: bytes = msgpack.packb(fields, unicode_errors="surrogateescape")  # paths need not be UTF-8
    return packed


def unpack_result(data: bytes) -> Snapshot:
    """What came of it, from its bytes.

    Raises:
        Damage, OSError: as they were raised over there.
        ValueError, TypeError: the bytes are none that `pack_result` made.
    """
    kind, *fields = msgpack.unpackb(data, unicode_errors="surrogateescape")
    if kind == "damage":
        raise Damage(*fields)
    if kind == "error":
        raise OSError(*fields)
    return Snapshot(*fields)


def main() -> None:
    """Runs as the process that `child_command` starts."""
    path, parent = Path(sys.argv[1]), int(sys.argv[2])
    memory_bytes_max = _go_first()
    plan = FoldPlan.unpack(sys.stdin.buffer.read())
    os.nice(NICENESS)
    gc.disable()  # a state has no cycles, and this process ends soon
    outcome: Snapshot | Damage | OSError
    try:
        outcome = fold(DiskDirectory(path, beside=True), plan, _look_after(parent))
    except (Damage, OSError) as error:
        outcome = error
    except MemoryError:
        outcome = OSError(errno.ENOMEM, _too_little(memory_bytes_max))
    sys.stdout.buffer.write(pack_result(outcome))
    sys.stdout.buffer.flush()
    os._exit(0)  # freeing millions of keys one by one takes seconds


def _go_first() -> int | None:
    """Has the kernel end this process, and not the server, when memory is short; returns what it may take, in bytes."""
    with suppress(OSError):  # there may be no /proc
        Path("/proc/self/oom_score_adj").write_text("1000")
    free_bytes = memory_limit.free_bytes()
    if free_bytes is None:
        return None
    bytes_max = int(free_bytes * MEMORY_SHARE)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (bytes_max if hard < 0 else min(bytes_max, hard), hard))
    return bytes_max


def _too_little(bytes_max: int | None) -> str:
    if bytes_max is None:
        return "there is no memory for a second copy of the data"
    return f"there is no memory for a second copy of the data: the container's limit leaves {bytes_max:,} bytes for it"


def _look_after(parent: int) -> Callable[[], None]:
    """A check that gives up when the server is gone, and tells it now and then that this process goes on."""
    next_s = 0.0

    def check() -> None:
        nonlocal next_s
        if os.getppid() != parent:
            raise Orphaned
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + TICK_S
            os.write(sys.stdout.fileno(), TICK)

    return check
