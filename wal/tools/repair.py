"""Mending a log that a start refuses, with as little loss as can be had, and none that was not agreed to.

What comes out is always a state that once was: the log as it stood at some commit. Everything from the first damage on
goes, because a log with a hole in it would lead to a state that never was. Where nothing is missing but what can be
known from the rest (a header, the manifest), that is written anew and nothing goes.

First everything is decided, on an overlay in memory (wal/tools/overlay.py) over files that are only read: find the
first damage as a start would, mend it, look again, until a start would take it. So the plan says exactly what will be
there.

Then, if it is to be, the disk is changed. Every file that is changed or goes is kept as `<name>.damaged-<ms>`. New
content is never written into a file but takes its place, because a backup may hold the same file under another name.
The manifest comes last: until it is replaced, or the only file that changes is, a start refuses as before, and whoever
begins anew with the repair gets the same log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from wal.files import Directory, Readable
from wal.frame import Frame, Record, Scan
from wal.manifest import MANIFEST_NAME, Manifest, decode_manifest, encode_manifest
from wal.replay import Apply, Kind, Progress, explain, kind_of
from wal.segment import (
    HEADER_BYTES,
    SNAPSHOT_MAGIC,
    Damage,
    SegmentHeader,
    create_file,
    decode_header,
    segment_name,
    segment_number,
    snapshot_name,
)
from wal.tools.check import Check, Report, stated_header
from wal.tools.copying import link_or_copy
from wal.tools.overlay import Overlay
from wal.tools.rebuild import read_header, rebuild
from wal.tools.view import NoLog, listed
from wal.tools.walk import walk


class CannotRepair(Exception):
    """What is left does not make a log. `damage` is what cannot be mended."""

    def __init__(self, damage: Damage, reason: str) -> None:
        super().__init__(reason)
        self.damage = damage


@dataclass(slots=True)
class Loss:
    """What goes.

    Attributes:
        last_lsn: the last LSN that is known to have been; the loss begins behind the last one kept.
        records: of those that can still be read, how many have which op code; None is no op.
    """

    last_lsn: int = 0
    records: Counter[int | None] = field(default_factory=Counter)

    def add(self, frame: Frame) -> None:
        """Adds a frame that is whole, and goes."""
        self.last_lsn = max(self.last_lsn, frame.last_lsn, frame.durable_lsn)
        self.records.update(_code(record) for record in frame.records)


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with one file."""

    file: str
    what: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How a log can be repaired.

    Attributes:
        damage: what is mended, in the order in which it was found; empty when nothing has to be done.
        steps: what is done, for a person.
        changed: files with what they are to hold, the manifest among them.
        removed: files that are set aside.
        loss: what goes.
        reasons: why the loss has to be accepted first; empty when that is not necessary.
        caveats: what nobody can know.
        after: what a verification will find then.
    """

    damage: list[Damage]
    steps: list[Step]
    changed: dict[str, bytes]
    removed: list[str]
    loss: Loss
    reasons: list[str]
    caveats: list[str]
    after: Report

    @property
    def lost(self) -> range:
        """The LSNs that are known to go."""
        return range(self.after.last_lsn + 1, self.loss.last_lsn + 1)


def plan_repair(source: Readable, applying: Callable[[], Apply], progress: Progress) -> Plan:
    """Decides how to repair a log; changes nothing.

    Args:
        source: the data directory.
        applying: makes what the frames are applied to, in order, beginning with an empty state.
        progress: told how far each pass is.

    Raises:
        NoLog: there is nothing to repair.
        CannotRepair: too little is left.
        NewerFormat: a later version wrote it.
        OSError: reading failed; that is for the disk's tools to mend.
    """
    return _Planner(source, applying, progress).plan()


class _Planner:
    def __init__(self, source: Readable, applying: Callable[[], Apply], progress: Progress) -> None:
        self._source = source
        self._overlay = Overlay(source)
        self._applying = applying
        self._progress = progress
        self._damage: list[Damage] = []
        self._loss = Loss()
        self._reasons: list[str] = []
        self._caveats: list[str] = []
        self._clean_close = False

    def plan(self) -> Plan:
        for _ in range(2 * len(self._source.names()) + 2):
            found = self._look()
            if isinstance(found, Report):
                return self._finish(found)
            self._damage.append(found)
            self._mend(found)
        raise CannotRepair(self._damage[0], "each mend leads to other damage")

    def _look(self) -> Report | Damage:
        """Looks as a start would: at what a start finds, or at what it refuses with."""
        try:
            manifest = self._read_manifest()
        except Damage as damage:
            return damage
        report = Check(self._overlay, manifest, self._applying(), self._progress).run_to_damage()
        return report.damage[0] if report.damage else report

    def _read_manifest(self) -> Manifest:
        names = self._overlay.names()
        if MANIFEST_NAME not in names:
            for name in names:
                if kind_of(name, None) is Kind.UNLISTED:
                    explain(self._overlay, name, None)
            raise NoLog(self._overlay.path)
        return decode_manifest(self._overlay.read(MANIFEST_NAME), self._overlay.path)

    def _finish(self, report: Report) -> Plan:
        changed = {name: data for name, data in self._overlay.changed.items() if data != self._original(name)}
        removed = sorted(self._overlay.removed & set(self._source.names()))  # a missing file stays missing
        steps = [Step(name, self._describe(name, data)) for name, data in sorted(changed.items())]
        steps += [Step(name, "is set aside") for name in removed]
        plan = Plan(self._damage, steps, changed, removed, self._loss, self._reasons, self._caveats, report)
        if self._clean_close and plan.lost and not plan.reasons:
            plan.reasons.append("the log was closed cleanly, so every record was on disk, the last ones too")
        return plan

    def _original(self, name: str) -> bytes | None:
        return self._source.read(name) if name in self._source.names() else None

    def _describe(self, name: str, data: bytes) -> str:
        if name == MANIFEST_NAME:
            names = listed(decode_manifest(data, ""))
            return f"is written anew and names {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else "")
        old = self._original(name)
        if old is None:
            return "is made anew, without records"
        if old.startswith(data):
            return f"is cut at offset {len(data)}, of {len(old)} bytes"
        header = "gets its header back, which follows from the manifest and the segment before"
        return header if len(old) == len(data) else f"{header}, and is cut at offset {len(data)}, of {len(old)} bytes"

    # Mending

    def _mend(self, damage: Damage) -> None:
        """Mends one damage in the overlay, or raises CannotRepair."""
        if damage.file == MANIFEST_NAME:
            self._mend_manifest(damage)
            return
        manifest = self._read_manifest()
        if manifest.clean_close is not None:
            self._clean_close = True
            self._loss.last_lsn = max(self._loss.last_lsn, manifest.clean_close.last_lsn)
        if damage.file not in listed(manifest):
            self._mend_unlisted(manifest, damage)
        elif segment_number(damage.file) is None:
            self._mend_snapshot(manifest, damage)
        else:
            self._mend_segment(manifest, damage)

    def _put_manifest(self, manifest: Manifest) -> None:
        self._overlay.put(MANIFEST_NAME, encode_manifest(manifest))

    def _mend_manifest(self, damage: Damage) -> None:
        manifest = rebuild(self._overlay)
        if manifest is None:
            raise CannotRepair(damage, "no segments are left that belong together from the first record on")
        self._put_manifest(manifest)
        last = listed(manifest)[-1]
        self._caveats.append(f"Without the manifest nobody can tell whether there were records behind those of {last}.")
        if manifest.snapshot is not None:
            name = snapshot_name(manifest.snapshot.number)
            self._caveats.append(f"Nor whether {name} has been cut where a frame ends.")

    def _mend_unlisted(self, manifest: Manifest, damage: Damage) -> None:
        """A segment that the manifest does not name: the manifest is an old one, or the segment is none of this log."""
        rebuilt = rebuild(self._overlay)
        if rebuilt is not None and damage.file in listed(rebuilt) and rebuilt.store_id == manifest.store_id:
            self._put_manifest(rebuilt)
            return
        header = read_header(self._overlay, damage.file)
        if header is not None and header.store_id == manifest.store_id:
            self._reasons.append(f"{damage.file} was a part of this log at some time")
            for item in walk(self._overlay, damage.file, header.identity, HEADER_BYTES, None):
                if isinstance(item, Frame):
                    self._loss.add(item)
        self._overlay.remove(damage.file)

    def _mend_snapshot(self, manifest: Manifest, damage: Damage) -> None:
        """Only what was folded into it can replace a snapshot; an interrupted checkpoint may have left that."""
        self._overlay.remove(damage.file)
        rebuilt = rebuild(self._overlay)
        if rebuilt is None or rebuilt.store_id != manifest.store_id or rebuilt.numbers.stop < manifest.numbers.stop:
            reason = "the snapshot holds all that was before, and what it was made from is gone: restore a backup"
            raise CannotRepair(damage, reason)
        self._put_manifest(rebuilt)

    def _mend_segment(self, manifest: Manifest, damage: Damage) -> None:
        """Cuts the log at the damage, unless nothing is missing but what can be known."""
        index = [segment_name(number) for number in manifest.numbers].index(damage.file)
        is_missing = damage.file not in self._overlay.names()
        if is_missing and self._has_newer_manifest(manifest, index):
            return
        data = b"" if is_missing else self._overlay.read(damage.file)
        if damage.offset > 0:
            self._cut(manifest, index, damage, data[: damage.offset])
            return
        header = self._expected_header(manifest, index, damage)
        has_frames = any(True for _ in Scan(data, HEADER_BYTES, header.identity, header.first_lsn))
        is_foreign = _is_header(data, damage.file)
        if not is_foreign and len(data) >= HEADER_BYTES and (has_frames or not any(data[HEADER_BYTES:])):
            self._overlay.put(damage.file, header.encode() + data[HEADER_BYTES:])
            return
        if index == 0 and manifest.snapshot is None:
            raise CannotRepair(damage, "it is the first of the log, and nothing of it can be read: restore a backup")
        if is_missing or is_foreign:
            self._reasons.append(f"{damage.file} is {'missing' if is_missing else 'another file'}")
        self._cut(manifest, index, damage, header.encode())

    def _has_newer_manifest(self, manifest: Manifest, index: int) -> bool:
        """Whether the segment is missing because a checkpoint folded it, and the manifest is an old one."""
        rebuilt = rebuild(self._overlay)
        if (
            rebuilt is None
            or rebuilt.snapshot is None
            or rebuilt.store_id != manifest.store_id
            or rebuilt.snapshot.number < manifest.segments[index][0]
        ):
            return False
        self._put_manifest(rebuilt)
        return True

    def _expected_header(self, manifest: Manifest, index: int, damage: Damage) -> SegmentHeader:
        """The one header that fits; what is before has been found whole."""
        number, segment_id = manifest.segments[index]
        if index > 0:
            before, before_id = manifest.segments[index - 1]
            before_bytes = self._overlay.size(segment_name(before))
            return SegmentHeader(number, manifest.store_id, segment_id, damage.lsn, before_id, before_bytes)
        if manifest.snapshot is None:
            return SegmentHeader(number, manifest.store_id, segment_id, first_lsn=1)
        snapshot = read_header(self._overlay, snapshot_name(manifest.snapshot.number), SNAPSHOT_MAGIC)
        assert snapshot is not None, "the snapshot has been replayed"
        return replace(snapshot, number=number, segment_id=segment_id)

    def _cut(self, manifest: Manifest, index: int, damage: Damage, data: bytes) -> None:
        """Ends the log in a segment that holds `data` then; what was behind goes."""
        names = [segment_name(number) for number in manifest.numbers[index:]]
        present = set(self._overlay.names())
        counted = [
            name
            for name in names
            if name in present and self._count_loss(manifest, name, damage if name == names[0] else None)
        ]
        if counted:
            some = f"{counted[0]} to {counted[-1]} hold" if len(counted) > 1 else f"{counted[0]} holds"
            self._reasons.append(f"{some} records that can still be read, but not without those before them")
        elif len(names) > 1:
            self._reasons.append(f"{names[0]} is not the last segment")
        for name in set(names[1:]) & present:
            self._overlay.remove(name)
        self._overlay.put(names[0], data)
        segments = manifest.segments[: index + 1]
        self._put_manifest(replace(manifest, segments=segments, clean_close=None))

    def _count_loss(self, manifest: Manifest, name: str, first: Damage | None) -> bool:
        """Counts the frames of a segment that go; returns whether there are any but the damaged one itself."""
        identity = stated_header(manifest, name).identity
        offset = HEADER_BYTES if first is None else max(HEADER_BYTES, first.offset)
        found = False
        for item in walk(self._overlay, name, identity, offset, None if first is None else first.lsn):
            if isinstance(item, Frame):
                self._loss.add(item)
                found = found or first is None or item.offset != first.offset
        return found


def _code(record: Record) -> int | None:
    return record[0] if record and type(record[0]) is int else None


def _is_header(data: bytes, name: str) -> bool:
    """Whether a segment's header can be read."""
    try:
        decode_header(data, "", name, 0)
    except Damage:
        return False
    return True


def repair(directory: Directory, plan: Plan, time_ms: int) -> list[str]:
    """Does what a plan says.

    Args:
        directory: locked; nothing has changed since the plan was made.
        plan: what to do.
        time_ms: wall clock, milliseconds since 1970; names what is kept.

    Returns:
        Names of the files that were kept.

    Raises:
        OSError: the disk refused; the log is as it was or as it is to be, or can be repaired again.
    """
    names = directory.names()
    old = [name for name in (*plan.changed, *plan.removed) if name in names]
    while any(f"{name}.damaged-{time_ms}" in names for name in old):
        time_ms += 1
    kept = {name: f"{name}.damaged-{time_ms}" for name in old}
    for name in plan.changed:
        if name in kept:
            link_or_copy(directory, name, directory, directory, kept[name], lambda _done: None)
    directory.sync()
    for name, data in plan.changed.items():
        if name != MANIFEST_NAME:
            create_file(directory, name, data).close()
    for name in plan.removed:
        directory.rename(name, kept[name])
    directory.sync()
    if MANIFEST_NAME in plan.changed:
        create_file(directory, MANIFEST_NAME, plan.changed[MANIFEST_NAME]).close()
    return sorted(kept.values())
