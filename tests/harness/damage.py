"""Damaged logs of every kind, for whoever looks at them or mends them: each a name and the files of a data directory.

`HEALTHY` are the logs they come from: crashed and closed cleanly, with and without a snapshot.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgpack

from engine.embedded.fold import fold
from engine.embedded.recovery import applying
from engine.limits import Limits
from engine.store.state import State
from tests.harness import logs
from tests.harness.disk import FakeDisk, Fault
from tests.harness.logs import TIME_MS, Dump
from wal.files import Directory
from wal.frame import Frame, Scan, encode
from wal.log import Log
from wal.manifest import MANIFEST_NAME, decode_manifest
from wal.segment import HEADER_BYTES, SegmentHeader, decode_header

Files = dict[str, bytes]

STEP = 3
"""Bytes between two places; `tests/crash/test_log_damage.py` takes every bit, this has more to do for each."""


def checkpoint(log: Log, directory: Directory) -> None:
    """Folds what is sealed, inline."""
    plan = log.plan_fold()
    assert plan is not None
    log.install(plan, fold(directory, plan))
    log.remove_folded()


def _with_snapshot(*, clean: bool) -> Files:
    disk = FakeDisk()
    _, log = logs.start(disk)
    for number, commit in enumerate(logs.COMMITS):
        if number == 4:
            log.seal()
            checkpoint(log, disk.beside())
        logs.append(log, commit, TIME_MS + number)
        log.commit()
    if clean:
        log.close()
    else:
        log.abandon()
    return disk.content()


HEALTHY: dict[str, Files] = {
    "crashed": logs.crashed().content(),
    "closed": logs.closed().content(),
    "crashed with snapshot": _with_snapshot(clean=False),
    "closed with snapshot": _with_snapshot(clean=True),
}


def disk_of(files: Files) -> FakeDisk:
    """A disk with these files."""
    disk = FakeDisk()
    for name, data in files.items():
        disk.put(name, data)
    return disk


def states(files: Files) -> dict[int, Dump]:
    """The state after each commit of a healthy log, by the LSN of its last record; 0 is the empty one."""
    state = State(Limits().memory_bytes_max)
    apply, found = applying(state), {0: list(state.dump())}
    directory = disk_of(files).directory()
    manifest = decode_manifest(files[MANIFEST_NAME], "")
    first = manifest.numbers[0]
    before = decode_header(files[f"{first:08}.log"], "", "", 0).first_lsn - 1

    def note(frame: Frame) -> None:
        apply(frame)
        in_snapshot = manifest.snapshot is not None and before not in found
        found[before if in_snapshot else frame.last_lsn] = list(state.dump())

    Log.recover(directory, note, time_ms=TIME_MS).abandon()
    return found


STATES = {name: states(files) for name, files in HEALTHY.items()}


def header(files: Files, name: str) -> SegmentHeader:
    """The header of a segment."""
    return decode_header(files[name], "", name, 0)


def segments(files: Files) -> list[str]:
    """Names of the segments, oldest first."""
    return sorted(name for name in files if name.endswith(".log"))


def racing(disk: FakeDisk, name: str, moment: int) -> Fault:
    """A fault: the n-th read of a segment sees its last frame and not the one before, which is being written."""
    whole = disk.get(name)
    *_, missed, last = _ends(disk.content(), name)
    image, left = disk.names[name].seen, moment

    def fault(operation: str, found: str) -> None:
        nonlocal left
        image.data[:] = whole
        left -= (operation, found) == ("read", name)
        if left == 0 and (operation, found) == ("read", name):
            image.data[missed:last] = bytes(last - missed)

    return fault


def flips(files: Files) -> Iterator[tuple[str, Files]]:
    """One bit of every third byte of every file."""
    chance = random.Random(0)
    for name, data in files.items():
        for at in range(0, len(data), STEP):
            flipped = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
            yield f"{name} flipped at {at}", files | {name: flipped}


def cuts(files: Files) -> Iterator[tuple[str, Files]]:
    """Every file cut at every third offset and where each commit ends, made longer, missing, or all zeros."""
    for name, data in files.items():
        for size in sorted({*range(0, len(data), STEP), *_ends(files, name)}):
            yield f"{name} cut at {size}", files | {name: data[:size]}
        for more in (b"\0", b"\x80", data, bytes(4096)):
            yield f"{name} longer by {len(more)} of {more[:1]!r}", files | {name: data + more}
        yield f"{name} missing", {other: kept for other, kept in files.items() if other != name}
        yield f"{name} zeroed", files | {name: bytes(len(data))}


def _ends(files: Files, name: str) -> list[int]:
    """Where the header and each commit of a segment end, but for the last."""
    if not name.endswith(".log"):
        return []
    scan = Scan(files[name], HEADER_BYTES, header(files, name).identity, header(files, name).first_lsn)
    return [frame.offset for frame in scan]


def strangers(files: Files) -> Iterator[tuple[str, Files]]:
    """Files of other names, places, stores and lives."""
    for name in segments(files):
        for number in (4, 7, 99):
            copy = f"{number:08}.log"
            if copy not in files:
                yield f"{name} also as {copy}", files | {copy: files[name]}
        for other in segments(files):
            if other != name:
                yield f"{name} is a copy of {other}", files | {name: files[other]}
    foreign = FakeDisk(seed=1)
    logs.write(foreign, clean=False)
    for name in set(files) & set(foreign.content()) - {"LOCK"}:
        yield f"{name} of another store", files | {name: foreign.get(name)}


def commit(files: Files, name: str, lsn: int, record: tuple[Any, ...]) -> bytes:
    """A frame for a segment, with a valid checksum and one record."""
    packed = [msgpack.packb(record, use_bin_type=True)]
    return encode(header(files, name).identity, lsn, TIME_MS, lsn - 1, packed)


def records(files: Files) -> Iterator[tuple[str, Files]]:
    """Commits with a valid checksum and records that nobody writes, at the end."""
    name = segments(files)[-1]
    lsn = max(states(files)) + 1
    good = commit(files, name, lsn + 1, (3, b"g", [b""]))
    bad_records: tuple[tuple[Any, ...], ...] = ((99, b"a"), (4, b"unknown"), (1, b"a"), ({},), ())
    for record in bad_records:
        bad = files[name] + commit(files, name, lsn, record)
        yield f"{record} at the end", files | {name: bad}
        yield f"{record} before the end", files | {name: bad + good}


def damaged(which: str) -> Iterator[tuple[str, Files]]:
    """All of these, made of one healthy log; some of it a start can live with."""
    files = HEALTHY[which]
    for kind in (flips, cuts, strangers, records):
        yield from kind(files)
    for at in (HEADER_BYTES, HEADER_BYTES + 3):
        name = segments(files)[-1]
        both = files | {name: files[name][:at] + b"?" + files[name][at + 1 :], MANIFEST_NAME: b""}
        yield f"{name} at {at} and the manifest", both
