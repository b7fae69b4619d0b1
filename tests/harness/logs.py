"""Small logs to damage and to interrupt, and what a start makes of them.

`COMMITS` uses every op; `DUMPS[n]` is the state after the first n commits, so a dump says how many were kept. All of it
is written with the real log on a `FakeDisk`, in three segments of a few frames each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from engine.embedded.fold import fold
from engine.embedded.recovery import recover
from engine.limits import Limits
from engine.store import ops
from engine.store.ops import Op
from engine.store.state import State
from tests.harness.disk import CHANGING, FakeDisk
from wal.log import Log
from wal.manifest import MANIFEST_NAME, read_manifest
from wal.segment import segment_name, snapshot_name

TIME_MS = 1_700_000_000_000
SEGMENT_BYTES_MAX = 200
"""Makes three segments of `COMMITS`."""

Dump = list[tuple[Any, ...]]

COMMITS: tuple[tuple[Op, ...], ...] = (
    ((ops.PUT, b"a", b"1", None),),
    ((ops.PUT, b"b", b"2", TIME_MS + 60_000), (ops.PUSH, b"q", (b"x", b"y", b"z"))),
    ((ops.POP_FIRST, b"q"),),
    ((ops.PUT, b"a", b"three", None),),
    ((ops.POP_LAST, b"q"),),
    ((ops.RETURN_LAST, b"q", b"z"), (ops.RETURN_FIRST, b"q", b"x")),
    ((ops.REMOVE, b"a"), (ops.PUSH, b"r", (b"",))),
    ((ops.EXPIRE, (b"b",)), (ops.PUT, b"c", b"\xff\x00", None)),
)


def _dumps() -> list[Dump]:
    state = State()
    dumps = [list(state.dump())]
    for commit in COMMITS:
        for op in commit:
            state.apply(op)
        dumps.append(list(state.dump()))
    return dumps


DUMPS = _dumps()


def start(disk: FakeDisk, time_ms: int = TIME_MS) -> tuple[Dump, Log]:
    """Starts on what is on the disk: the state, and the log open for appending.

    Raises:
        Damage, NewerFormat, OSError: it refuses; the lock is given back.
    """
    directory = disk.directory()
    try:
        state, log = recover(directory, Limits(), wall_ms=time_ms, segment_bytes_max=SEGMENT_BYTES_MAX)
    except BaseException:
        directory.close()
        raise
    return list(state.dump()), log


def dump(disk: FakeDisk) -> Dump:
    """Starts, and ends as a crash does: what the disk holds."""
    found, log = start(disk)
    log.abandon()
    return found


def append(log: Log, commit: Sequence[Op], time_ms: int = TIME_MS) -> None:
    """Appends one commit without a sync."""
    log.append([ops.pack(op) for op in commit], time_ms)


def write(disk: FakeDisk, commits: Sequence[Sequence[Op]] = COMMITS, *, clean: bool) -> None:
    """Writes commits to a disk, each synced, and ends with a clean close or a crash."""
    _, log = start(disk)
    for number, commit in enumerate(commits):
        append(log, commit, TIME_MS + number)
        log.commit()
    if clean:
        log.close()
    else:
        log.abandon()


def checkpoint(disk: FakeDisk, log: Log) -> bool:
    """Folds all that was appended, as the engine does; says whether there was anything to fold.

    Raises:
        OSError: the fold or the disk refused; the log is as it was.
    """
    log.seal()
    plan = log.plan_fold()
    if plan is None:
        return False
    beside = disk.beside()
    try:
        snapshot = fold(beside, plan)
    finally:
        beside.close()
    log.install(plan, snapshot)
    with contextlib.suppress(OSError):  # the next one, or the next start, tries again
        log.remove_folded()
    return True


def folded() -> FakeDisk:
    """A disk with all of `COMMITS`, the first six folded into a snapshot, closed cleanly."""
    disk = FakeDisk()
    write(disk, COMMITS[:6], clean=True)
    _, log = start(disk)
    checkpoint(disk, log)
    log.close()
    write(disk, COMMITS[6:], clean=True)
    return disk


def listed(disk: FakeDisk) -> list[str]:
    """Names of the files that make up the log, the manifest included."""
    beside = disk.beside()
    manifest = read_manifest(beside)
    beside.close()
    snapshots = [] if manifest.snapshot is None else [snapshot_name(manifest.snapshot.number)]
    return sorted([MANIFEST_NAME, *snapshots, *map(segment_name, manifest.numbers)])


def crashed() -> FakeDisk:
    """A disk with all of `COMMITS`, never closed."""
    disk = FakeDisk()
    write(disk, clean=False)
    return disk


def closed() -> FakeDisk:
    """A disk with all of `COMMITS`, closed cleanly."""
    disk = FakeDisk()
    write(disk, clean=True)
    return disk


def goes_on(disk: FakeDisk) -> bool:
    """Whether a write after this start survives a power cut, with everything that was there before."""
    before, log = start(disk)
    append(log, ((ops.PUT, b"later", b"on", None),))
    log.commit()
    disk.cut_power()
    return dump(disk) == sorted([*before, ("value", b"later", b"on", None)], key=lambda entry: bytes(entry[1]))


def changes(disk: FakeDisk) -> list[tuple[str, str]]:
    """The operations so far that change the disk."""
    return [(operation, name) for operation, name in disk.log if operation in CHANGING]


def at_change(disk: FakeDisk, count: int, strike: Callable[[], None]) -> None:
    """Has `strike` called before the change with this number, from 0 and from now on; OSError is raised then."""
    left = count

    def fault(operation: str, name: str) -> None:
        nonlocal left
        if operation in CHANGING:
            left -= 1
            if left == -1:
                strike()
                raise OSError(f"{operation} {name} does not come to pass")

    disk.fault = fault
