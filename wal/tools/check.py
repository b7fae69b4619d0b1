"""Verifying a log: what a start would find, without one, and all that is wrong and not only the first of it.

The verdict is that of the start itself: the same names, headers, frames and records are looked at by the same
functions (`wal/replay.py`). Only when those have found damage, what stands behind it is read as well, as far as it can
be told what it should be: frames behind a hole, and the segments after a damaged one. Their records are not applied,
because there is no state any more that they would fit.

Beside a server nothing is taken for damage that the server may be doing: see `wal/tools/view.py`, and `settle` for what
is written while it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wal.files import LOCK_NAME, Directory, Readable
from wal.frame import Frame, Tail
from wal.manifest import MANIFEST_NAME, Manifest, encode_manifest
from wal.replay import IMPORT_NAME, Apply, Found, Kind, Progress, check_end, explain, kind_of, replay
from wal.segment import (
    HEADER_BYTES,
    SEGMENT_MAGIC,
    SNAPSHOT_MAGIC,
    Damage,
    SegmentHeader,
    decode_header,
    segment_name,
    snapshot_name,
    snapshot_number,
)
from wal.tools.rebuild import read_header, rebuild
from wal.tools.view import NoLog, Restless, View, listed, look
from wal.tools.walk import Hole, settle, walk

PASSES_MAX = 5
"""Times a log is read when damage may be the doing of a server."""


@dataclass(slots=True)
class FileReport:
    """What a file of the log holds.

    Attributes:
        name: of the file.
        size_bytes: its length; of the open segment with the room that is allocated ahead.
        frames: that are whole.
        records: in them.
        first_lsn: of its first record; None in a snapshot, whose records are a state and have no LSN.
        last_lsn: of its last record.
    """

    name: str
    size_bytes: int
    frames: int = 0
    records: int = 0
    first_lsn: int | None = None
    last_lsn: int | None = None

    def count(self, frame: Frame) -> None:
        """Adds a frame."""
        self.frames += 1
        self.records += len(frame.records)
        if snapshot_number(self.name) is None:
            self.first_lsn = self.first_lsn or frame.first_lsn
            self.last_lsn = frame.last_lsn


@dataclass(frozen=True, slots=True)
class Torn:
    """The end of the last segment, when it is no whole commit: the next start keeps a copy and cuts it off."""

    file: str
    offset: int
    size_bytes: int
    reason: str


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        directory: the data directory.
        store_id: of the store; empty when that is not known.
        files: those of the log, in the order of replay.
        damage: in the order in which it was found; the first is what a start refuses with.
        torn: the torn tail.
        is_closed: whether the log was closed cleanly.
        is_unfinished: whether an import into it was not finished, so that no server starts on it.
        last_lsn: of the last record before the first damage.
        time_ms: engine time of the last commit before it.
        leftovers: files that the next start removes.
        kept: copies of torn or damaged files.
        foreign: files that are not Holdfast's.
    """

    directory: str
    store_id: bytes = b""
    files: list[FileReport] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    torn: Torn | None = None
    is_closed: bool = False
    is_unfinished: bool = False
    last_lsn: int = 0
    time_ms: int = 0
    leftovers: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def verify(directory: Directory, applying: Callable[[], Apply], progress: Progress) -> Report:
    """Reads a log and says what it holds and what is wrong with it; changes nothing.

    Args:
        directory: with or without its lock; a server may run on it.
        applying: makes what the frames are applied to, in order, beginning with an empty state.
        progress: told how far it is.

    Raises:
        NoLog: there is nothing to verify.
        NewerFormat: a later version wrote it.
        Restless: a server changes it faster than it can be read.
        OSError: reading failed.
    """
    for _ in range(PASSES_MAX):
        view, damage = open_view(directory)
        with view:
            check = Check(view, view.manifest, applying(), progress)
            report = check.run(damage)
            if damage or not check.may_be_moving or view.is_current():
                return report
    raise Restless(directory.path)


def open_view(directory: Directory) -> tuple[View, list[Damage]]:
    """Looks at a log; without a manifest that can be read, at what belongs together by its headers.

    Returns:
        The log, and what is wrong with its manifest.

    Raises:
        NoLog, NewerFormat, Restless, OSError: see `verify`.
    """
    names = directory.names()
    try:
        view = look(directory)
        if view.manifest is not None:
            return view, []
        for name in view.names():
            if kind_of(name, None) is Kind.UNLISTED:
                explain(view, name, None)
    except Damage as error:
        damage = error
    else:
        raise NoLog(directory.path)
    with View(directory, names, None, None) as bare:
        manifest = rebuild(bare)
    data = None if manifest is None else encode_manifest(manifest)
    return View(directory, names, manifest, data), [damage]


class Check:
    """One pass over a log.

    Args:
        source: where it is.
        manifest: what makes it up; None when nobody knows.
        apply: called with every frame before the first damage.
        progress: told how far it is.
    """

    def __init__(self, source: Readable, manifest: Manifest | None, apply: Apply, progress: Progress) -> None:
        self._source = source
        self._manifest = manifest
        self._apply = apply
        self._progress = progress
        self._names = set(source.names())
        self._report = Report(source.path)
        self.may_be_moving = False
        """Whether damage was found where a server may be at work."""

    def run(self, damage: Sequence[Damage] = ()) -> Report:
        """Reads everything.

        Args:
            damage: found already, in the manifest.
        """
        self._report.damage += damage
        self._sort_names()
        if self._manifest is not None:
            self._report.store_id = self._manifest.store_id
            self._report.is_closed = self._manifest.clean_close is not None
            try:
                self._replay(self._manifest)
            except Damage as first:
                self._note(first)
                self._read_on(self._manifest, first)
        return self._report

    def run_to_damage(self) -> Report:
        """Reads as far as a start would."""
        self._sort_names()
        if self._manifest is not None and not self._report.damage:
            try:
                self._replay(self._manifest)
            except Damage as first:
                self._note(first)
        return self._report

    def _note(self, damage: Damage) -> None:
        self._report.damage.append(damage)
        sealed = [] if self._manifest is None else listed(self._manifest)[:-1]
        self.may_be_moving = self.may_be_moving or damage.file not in (*sealed, MANIFEST_NAME)

    def _sort_names(self) -> None:
        places = {
            Kind.TEMPORARY: self._report.leftovers,
            Kind.UNLISTED: self._report.leftovers,
            Kind.KEPT: self._report.kept,
            Kind.FOREIGN: self._report.foreign,
        }
        self._report.is_unfinished = IMPORT_NAME in self._names
        for name in sorted(self._names):
            kind = kind_of(name, self._manifest)
            try:
                if kind is Kind.UNLISTED and self._manifest is not None:
                    explain(self._source, name, self._manifest)
            except FileNotFoundError:
                continue  # a server has removed it
            except Damage as damage:
                self._note(damage)
                continue
            if kind in places and name not in (LOCK_NAME, MANIFEST_NAME, IMPORT_NAME):
                places[kind].append(name)

    # As a start does

    def _replay(self, manifest: Manifest) -> None:
        """Raises Damage at the first of it."""

        def apply(frame: Frame) -> None:
            self._apply(frame)
            current = self._report.files[-1]
            current.count(frame)
            self._report.time_ms = frame.time_ms
            self._report.last_lsn = current.last_lsn or self._report.last_lsn

        found = replay(self._source, manifest, apply, self._progress, self._begin)
        found.scan = settle(self._source, found.name, found.header.identity, found.scan)
        check_end(self._source, manifest.clean_close, found)
        if found.scan.tail is Tail.TORN:
            self._report.torn = _torn(found)

    def _begin(self, name: str) -> None:
        before = self._report.files[-1].name if self._report.files else name
        if snapshot_number(before) is not None and before != name and not self._report.damage:
            header = read_header(self._source, before, SNAPSHOT_MAGIC)
            assert header is not None, "the snapshot has been replayed"
            self._report.last_lsn = header.first_lsn - 1
        size_bytes = self._source.size(name) if name in self._names else 0
        self._report.files.append(FileReport(name, size_bytes))

    # Behind the first damage

    def _read_on(self, manifest: Manifest, first: Damage) -> None:
        """Reads what stands behind the first damage."""
        names = listed(manifest)
        for name in names[names.index(first.file) :]:
            if name == first.file:
                self._read_file(manifest, name, first)
                continue
            self._begin(name)
            if name in self._names:
                self._read_file(manifest, name, None)
            else:
                self._note(Damage(self._source.path, name, 0, 0, "the file is missing"))

    def _read_file(self, manifest: Manifest, name: str, first: Damage | None) -> None:
        """Reads a file from its beginning, or from the first damage on."""
        if name not in self._names:
            return
        offset, lsn = HEADER_BYTES, None
        if first is not None and first.offset > 0:
            offset, lsn = first.offset, first.lsn or None
        elif (header := self._read_header(manifest, name, first)) is not None:
            lsn = 1 if snapshot_number(name) is not None else header.first_lsn
        hole: Hole | None = None
        for item in walk(self._source, name, stated_header(manifest, name).identity, offset, lsn):
            if hole is not None:
                self._note_hole(name, hole, first)
                hole = None
            if isinstance(item, Frame):
                self._current(name).count(item)
            else:
                hole = item
        if hole is not None:
            self._note_end(manifest, name, hole, first)

    def _read_header(self, manifest: Manifest, name: str, first: Damage | None) -> SegmentHeader | None:
        """The header of a file, if it is the one that the manifest names."""
        stated = stated_header(manifest, name)
        magic = SEGMENT_MAGIC if snapshot_number(name) is None else SNAPSHOT_MAGIC
        damage: Damage | None = None
        header: SegmentHeader | None = None
        try:
            header = decode_header(self._source.read(name, 0, HEADER_BYTES), self._source.path, name, 0, magic)
        except Damage as error:
            damage = error
        if header is not None and _who(header) != _who(stated):
            damage = Damage(
                self._source.path, name, 0, header.first_lsn, "the file is not the one that the manifest names"
            )
            header = None
        if damage is not None and first is None:
            self._note(damage)
        return header

    def _note_hole(self, name: str, hole: Hole, first: Damage | None) -> None:
        if first is None or first.offset != hole.offset:
            self._note(Damage(self._source.path, name, hole.offset, hole.lsn, hole.reason))

    def _note_end(self, manifest: Manifest, name: str, hole: Hole, first: Damage | None) -> None:
        """Judges what stands at the end of a file."""
        may_be_torn = manifest.clean_close is None and name == listed(manifest)[-1] and hole.tail is not Tail.CORRUPT
        if not may_be_torn:
            self._note_hole(name, hole, first)
        elif hole.tail is Tail.TORN:
            self._report.torn = Torn(name, hole.offset, hole.end - hole.offset, hole.reason)

    def _current(self, name: str) -> FileReport:
        assert self._report.files[-1].name == name, "files are read in order"
        return self._report.files[-1]


def stated_header(manifest: Manifest, name: str) -> SegmentHeader:
    """As much of a file's header as the manifest states: number, store and id."""
    if manifest.snapshot is not None and name == snapshot_name(manifest.snapshot.number):
        return SegmentHeader(manifest.snapshot.number, manifest.store_id, manifest.snapshot.snapshot_id, first_lsn=0)
    ids = {segment_name(number): (number, segment_id) for number, segment_id in manifest.segments}
    number, segment_id = ids[name]
    return SegmentHeader(number, manifest.store_id, segment_id, first_lsn=0)


def _who(header: SegmentHeader) -> tuple[int, bytes, bytes]:
    return header.number, header.store_id, header.segment_id


def _torn(found: Found) -> Torn:
    return Torn(found.name, found.scan.offset, len(found.scan.rest), found.scan.reason)
