"""Data directories: moving out of one, and into one.

A directory that is moved into holds `IMPORT` beside its log until everything was read back and compared; it names the
source, and in a second line says by how many milliseconds deadlines are brought forward, if they are. No server starts
on it meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator

from engine.commands.grammar import show
from engine.embedded.recovery import applying, no_collector
from engine.moving.items import (
    PIECE_VALUES_MAX,
    Item,
    MoveError,
    Piece,
    Plain,
    in_batches,
)
from engine.moving.move import Begun, Progress, clock_ahead_ms
from engine.moving.tally import Tally
from engine.store import ops
from engine.store.ops import Op
from engine.store.state import State
from wal import replay
from wal.files import LOCK_NAME, Directory
from wal.log import Log, LogFailed, segment_bytes_for
from wal.replay import IMPORT_NAME, unfinished_import
from wal.segment import TEMPORARY_SUFFIX, create_file
from wal.tools.check import Report, verify

GROUP_BYTES_MAX = 4 * 1024 * 1024
"""Records that are written and synced together; the last one may go beyond."""

RECORD_BYTES_MAX = 64 * 1024 * 1024
"""A record is whole in a frame, and a server would not make a longer one."""


def read_directory(directory: Directory, progress: replay.Progress) -> tuple[State, Report]:
    """Replays a data directory without changing it.

    Args:
        directory: with or without its lock; a server may run on it.
        progress: told how far that is, in bytes.

    Returns:
        Its state, and what is known of its log.

    Raises:
        Damage, NewerFormat: it is damaged.
        NoLog, Restless, OSError: see `wal.tools.check.verify`.
    """
    states: list[State] = []

    def begin() -> replay.Apply:
        states[:] = [State()]
        return applying(states[0])

    with no_collector():
        report = verify(directory, begin, progress)
    for damage in report.damage:
        raise damage
    return states[0], report


def items_of(state: State) -> Iterator[Item]:
    """Everything a state holds, in the order of the keys; for equal states the same items."""
    last: bytes | None = None
    offset = 0
    for op in state.snapshot_ops():
        if op[0] == ops.PUT:
            yield Plain(*op[1:])
            continue
        _, key, values = op
        if key != last:
            last, offset = key, 0
        for first in range(0, max(1, len(values)), PIECE_VALUES_MAX):
            some = values[first : first + PIECE_VALUES_MAX]
            yield Piece(key, offset, some)
            offset += len(some)


class DirectorySource:
    """Everything in a data directory, as it was when it was replayed; expired keys too, as they are in there.

    Args:
        directory: with or without its lock.
        wall_ms: the wall clock, milliseconds since 1970. A server would go by a later time, if there is one in the log.
        progress: told how far the replay is, in bytes.

    Raises:
        MoveError: an import into it is not finished.
        Damage, NewerFormat, NoLog, Restless, OSError: see `read_directory`.
    """

    is_repeatable = True

    def __init__(self, directory: Directory, wall_ms: Callable[[], int], progress: replay.Progress) -> None:
        if IMPORT_NAME in directory.names():
            raise MoveError(unfinished_import(directory.path))
        self.name = directory.path
        self._state, report = read_directory(directory, progress)
        self.entries = len(self._state)
        self.identity = f"store {report.store_id.hex()} at record {report.last_lsn}"
        self.time_ms = max(wall_ms(), report.time_ms)

    async def batches(self) -> AsyncGenerator[list[Item], None]:
        """Yields all items, some at a time."""
        for batch in in_batches(items_of(self._state)):
            yield batch

    def check(self, tally: Tally) -> None:
        """The log has checksums of its own, and they were looked at."""


class DirectoryDestination:
    """A data directory that is moved into.

    Args:
        directory: locked; it is given up by `finish` or `close`.
        wall_ms: the wall clock, milliseconds since 1970.
        progress: told how far the replay of an unfinished move is, in bytes.
    """

    def __init__(self, directory: Directory, wall_ms: Callable[[], int], progress: replay.Progress) -> None:
        self.name = directory.path
        self._directory = directory
        self._wall_ms = wall_ms
        self._progress = progress
        self._state = State()
        self._log: Log | None = None
        self._records: list[bytes] = []
        self._records_bytes = 0
        self._finished = False

    async def begin(self, identity: str, time_ms: int) -> Begun:
        """Begins a move, or resumes it; whatever is in it already is compared with what comes.

        Raises:
            MoveError: it is not empty, and holds no unfinished move from this source.
            OSError: the disk refused.
        """
        names = set(self._directory.names()) - {LOCK_NAME, IMPORT_NAME + TEMPORARY_SUFFIX}
        if IMPORT_NAME in names:
            other = self._directory.read(IMPORT_NAME).decode("utf-8", "replace")
            ahead_ms = _noted_ms(other, identity)
            if ahead_ms is None:
                raise MoveError(
                    f"{self.name} holds an import from another source that was not finished: {other}, not {identity}"
                )
        elif names:
            raise MoveError(f"{self.name} is not empty")
        else:
            ahead_ms = clock_ahead_ms(time_ms, self._wall_ms())
            note = f"{identity}\n{ahead_ms}" if ahead_ms else identity
            create_file(self._directory, IMPORT_NAME, note.encode()).close()
        with no_collector():
            self._log = Log.recover(
                self._directory,
                applying(self._state),
                time_ms=self._wall_ms(),
                segment_bytes_max=segment_bytes_for(self._directory.capacity_bytes()),
                progress=self._progress,
            )
        return Begun(0, ahead_ms)

    async def write(self, items: Iterable[Item], position: int) -> None:  # noqa: ARG002  # the content itself tells
        """Takes items; those it has already change nothing."""
        now_ms = self._wall_ms()
        for item in items:
            op = self._put(item, now_ms) if isinstance(item, Plain) else self._push(*item)
            if op is None:
                continue
            record = ops.pack(op)
            if len(record) > RECORD_BYTES_MAX:
                raise MoveError(f"what is stored under {show(item.key)} is too large for one record of the log")
            self._state.apply(op)
            self._records.append(record)
            self._records_bytes += len(record)
            if self._records_bytes >= GROUP_BYTES_MAX:
                self._commit()

    def _put(self, item: Plain, now_ms: int) -> Op | None:
        if item.deadline_ms is not None and item.deadline_ms <= now_ms:
            return None
        is_there = self._state.held(item.key) == (item.value, item.deadline_ms)
        return None if is_there else (ops.PUT, *item)

    def _push(self, key: bytes, offset: int, values: tuple[bytes, ...]) -> Op | None:
        queue = self._state.queue(key)
        if queue is None and self._state.held(key)[0] is not None:
            raise MoveError(f"{show(key)} comes as a plain value and as a queue")
        length = 0 if queue is None else len(queue)
        if length < offset:
            raise MoveError(f"a piece of the queue {show(key)} is missing before value {offset}")
        if queue is not None and length >= offset + len(values):
            return None
        return (ops.PUSH, key, values[length - offset :])

    def _commit(self) -> None:
        assert self._log is not None, "it has begun"
        if not self._records:
            return
        wanted_bytes = self._records_bytes + GROUP_BYTES_MAX // 1024
        try:
            self._log.make_room(wanted_bytes)
            if self._log.room.frames_bytes < wanted_bytes:
                raise MoveError(f"the disk of {self.name} is full")
            self._log.append(self._records, max(self._wall_ms(), self._log.recovery.time_ms))
            self._log.commit()
        except LogFailed as error:
            raise MoveError(str(error)) from error
        self._records, self._records_bytes = [], 0

    async def settle(self) -> None:
        """Returns when all that was written is on disk."""
        self._commit()

    async def read_back(self, progress: Progress) -> tuple[Tally, int]:
        """Reads the log once more, from the disk."""
        self._state = State()  # gives the memory back
        state, _ = read_directory(self._directory, lambda _done, _total: None)
        tally = Tally()
        for batch in in_batches(items_of(state)):
            tally.add(batch)
            progress(tally.entries, len(state))
        tally.end()
        return tally, self._wall_ms()

    async def finish(self) -> None:
        """Makes it a data directory like any other, and gives it up."""
        assert self._log is not None, "it has begun"
        self._directory.remove(IMPORT_NAME)
        self._directory.sync()
        log, self._log = self._log, None
        self._finished = True
        try:
            log.close()
        except LogFailed as error:
            raise MoveError(str(error)) from error

    async def rewind(self) -> None:
        """Nothing to do: what is there is always compared."""

    def close(self) -> None:
        """Gives the directory up, as a crash would."""
        if self._log is not None:
            log, self._log = self._log, None
            log.abandon()
        elif not self._finished:
            self._directory.close()


def _noted_ms(note: str, identity: str) -> int | None:
    """By how much deadlines are brought forward, from the note of an unfinished move; None if it is another's."""
    first, _, ahead_ms = note.rpartition("\n")
    if first == identity and ahead_ms.isdigit():
        return int(ahead_ms)
    return 0 if note == identity else None
