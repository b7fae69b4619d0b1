"""Rolls and checkpoints interrupted before every single operation on the disk: by a kill, by a power cut, by an error.

What was committed is there afterwards, and nothing that was not appended; nothing is left over; writing goes on.
"""

from __future__ import annotations

import contextlib
import errno
import random

import pytest

from engine.store import ops
from tests.crash.test_log_crash import STRIKES, Strike, anyhow
from tests.harness import logs
from tests.harness.disk import FakeDisk
from tests.harness.logs import COMMITS, DUMPS
from wal.log import Log, LogFailed
from wal.open_segment import ALLOCATE_BYTES_MIN
from wal.segment import Damage

SOFT = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
SPARE_BYTES = 70_000
"""Asked for, it takes a spare: no open segment has so much left."""

either = pytest.mark.parametrize("allocates", [True, False], ids=["allocated", "grown"])


class Life:
    """Writes all commits in three runs, with rolls, spares, clean closes and three checkpoints; keeps count."""

    def __init__(self, *, allocates: bool) -> None:
        self.disk = FakeDisk(allocates=allocates)
        self.appended = 0
        self.committed = 0
        self.checkpoints = 0

    def live(self) -> bool:
        """Says whether it came to its end."""
        try:
            for parts in ((3, 1), (1, 2, 0), (1,)):
                _, log = logs.start(self.disk)
                for number, part in enumerate(parts):
                    if number:
                        self.fold(log)
                    for _ in range(part):
                        self.commit(log)
                log.close()
        except (OSError, LogFailed):
            return False
        return True

    def commit(self, log: Log) -> None:
        """Writes the next commit."""
        commit = COMMITS[self.appended]
        self.appended += 1
        logs.append(log, commit)
        log.commit()
        self.committed += 1
        log.make_room(SPARE_BYTES if self.appended % 3 == 0 else 0)

    def fold(self, log: Log) -> None:
        """Makes a checkpoint, which may fail for want of something: the log goes on."""
        try:
            self.checkpoints += logs.checkpoint(self.disk, log)
        except OSError as error:
            if error.errno not in SOFT:
                raise

    def check(self) -> None:
        """Starts again: all that was committed is there, nothing that was not appended, and nothing is left over."""
        dump, log = logs.start(self.disk)
        assert DUMPS.index(dump) in range(self.committed, self.appended + 1)
        names = [name for name in sorted(self.disk.names) if ".torn-" not in name]
        assert names == logs.listed(self.disk)
        log.close()
        assert logs.dump(self.disk) == dump
        assert logs.goes_on(self.disk)


def changes(*, allocates: bool) -> int:
    """How often a whole life changes the disk."""
    life = Life(allocates=allocates)
    assert life.live()
    assert life.committed == len(COMMITS)
    assert life.checkpoints == 3
    count = len(logs.changes(life.disk))
    life.check()
    return count


CHANGES = {allocates: changes(allocates=allocates) for allocates in (True, False)}


@anyhow
@either
def test_a_crash_before_any_change_of_the_disk_keeps_what_was_committed(*, allocates: bool, strike: Strike) -> None:
    """C1, C2, C3, B11, B13"""
    for count in range(CHANGES[allocates]):
        life = Life(allocates=allocates)
        logs.at_change(life.disk, count, lambda disk=life.disk: strike(disk))  # type: ignore[misc]
        assert not life.live()
        strike(life.disk)
        life.check()


def at_operation(disk: FakeDisk, count: int, error: int) -> list[str]:
    """Has the operation with this number, reading ones included, fail once; its name is in the list then."""
    struck: list[str] = []
    left = count

    def fault(operation: str, name: str) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            struck.append(f"{operation} {name}")
            raise OSError(error, "injected")

    disk.fault = fault
    return struck


@pytest.mark.parametrize(
    ("allocates", "error"),
    [(True, errno.EIO), (True, errno.ENOSPC), (True, errno.EMFILE), (False, errno.ENOSPC)],
    ids=["EIO", "ENOSPC", "EMFILE", "ENOSPC where nothing can be allocated"],
)
def test_an_error_of_any_operation_keeps_what_was_committed(*, allocates: bool, error: int) -> None:
    """B1, B2, B3, B6, C1, C4: the log goes on or has failed for good; either way the next start has it all."""
    went_on = 0
    for count in range(1_000):
        life = Life(allocates=allocates)
        life.disk.torn = random.Random(count)
        struck = at_operation(life.disk, count, error)
        lived = life.live()
        if not struck:
            break
        if lived:
            went_on += 1
            assert life.committed == len(COMMITS)
        STRIKES["power cut, torn" if count % 2 else "kill, then power cut"](life.disk)
        life.disk.torn = None
        shown = logs.dump(life.disk)
        life.disk.cut_power()
        assert logs.dump(life.disk) == shown
        life.check()
    assert went_on > (5 if error == errno.EIO else 50)


@anyhow
def test_a_crash_before_any_change_of_the_start_after_a_checkpoint_that_crashed(strike: Strike) -> None:
    """B12, C1, C3: twice in a row, and with the power cut in between."""
    chance = random.Random(12)
    for count in range(0, CHANGES[True], 3):
        life = Life(allocates=True)
        logs.at_change(life.disk, count, lambda disk=life.disk: strike(disk))  # type: ignore[misc]
        life.live()
        strike(life.disk)
        for _ in range(3):
            logs.at_change(life.disk, chance.randrange(8), lambda disk=life.disk: strike(disk))  # type: ignore[misc]
            with contextlib.suppress(OSError):
                dump, _ = logs.start(life.disk)
                life.committed = life.appended = DUMPS.index(dump)  # shown, so it stays
            strike(life.disk)
        life.check()


@either
def test_a_hundred_checkpoints_that_crash_in_a_row_do_not_make_the_disk_grow(*, allocates: bool) -> None:
    """C7: each at another place, or after it was installed; some of what lives is written over in between."""
    chance = random.Random(7)
    disk = FakeDisk(allocates=allocates)
    live = tuple((ops.PUT, b"key%03d" % number, b"v" * 200, None) for number in range(200))
    logs.write(disk, [live], clean=False)
    live_bytes = sum(len(ops.pack(op)) for op in live)
    most_bytes = crashes = 0
    for number in range(100):
        dump, log = logs.start(disk)
        assert [entry[1] for entry in dump] == [op[1] for op in live]
        logs.append(log, live[number : number + 1])
        log.commit()
        logs.at_change(disk, number % 17, lambda: chance.choice(list(STRIKES.values()))(disk))
        try:
            logs.checkpoint(disk, log)
        except (OSError, LogFailed):
            crashes += 1
        most_bytes = max(most_bytes, sum(map(len, disk.content().values())))
        disk.kill()
    assert crashes > 80
    assert most_bytes <= 3 * live_bytes + (3 * ALLOCATE_BYTES_MIN if allocates else 0)
    assert len(logs.dump(disk)) == 200


def test_a_checkpoint_that_finds_damage_changes_nothing() -> None:
    """A2, C1: it reads all it folds; the next start would refuse as well."""
    disk = FakeDisk()
    _, log = logs.start(disk)
    for commit in COMMITS[:4]:
        logs.append(log, commit)
        log.commit()
    first = disk.segments()[0]
    data = disk.get(first)
    log.seal()
    disk.put(first, data[:-1] + bytes([data[-1] ^ 1]))
    before = {name: content for name, content in disk.content().items() if name != disk.segments()[-1]}
    with pytest.raises(Damage) as caught:
        logs.checkpoint(disk, log)
    assert caught.value.file == first
    assert before.items() <= disk.content().items()
    assert not [name for name in disk.names if "snapshot" in name]
