"""The log interrupted before every single operation on the disk: by a kill, by a power cut, by an error.

What was committed is there afterwards, and nothing that was not appended; writing goes on.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable

import pytest

from engine.store import ops
from tests.harness import logs
from tests.harness.disk import FakeDisk
from tests.harness.logs import COMMITS, DUMPS
from wal.log import LogFailed
from wal.segment import HEADER_BYTES

Strike = Callable[[FakeDisk], None]


def kill_then_cut_power(disk: FakeDisk) -> None:
    """The server dies; the machine does, too, before the system has written anything."""
    disk.kill()
    disk.cut_power()


STRIKES: dict[str, Strike] = {
    "kill": FakeDisk.kill,
    "power cut": FakeDisk.cut_power,
    "power cut, names kept": lambda disk: disk.cut_power(keep_names=True),
    "power cut, torn": lambda disk: disk.cut_power(random.Random(len(disk.log))),
    "power cut, torn, names kept": lambda disk: disk.cut_power(random.Random(len(disk.log)), keep_names=True),
    "kill, then power cut": kill_then_cut_power,
}

anyhow = pytest.mark.parametrize("strike", STRIKES.values(), ids=STRIKES)


class Life:
    """Writes all commits in two runs, the first ended by a clean close; counts what was appended and committed."""

    def __init__(self, disk: FakeDisk) -> None:
        self.disk = disk
        self.appended = 0
        self.committed = 0

    def live(self) -> bool:
        """Says whether it came to its end."""
        try:
            for commits in (COMMITS[:5], COMMITS[5:]):
                _, log = logs.start(self.disk)
                for commit in commits:
                    self.appended += 1
                    logs.append(log, commit)
                    log.commit()
                    self.committed += 1
                log.close()
        except (OSError, LogFailed):
            return False
        return True

    def check(self) -> None:
        """Starts again: all that was committed is there, nothing that was not appended, and nothing is left over."""
        dump = logs.dump(self.disk)
        assert DUMPS.index(dump) in range(self.committed, self.appended + 1)
        listed = logs.start(self.disk)[1]
        names = set(self.disk.names)
        listed.abandon()
        assert not [name for name in names if name.endswith(".tmp")]
        assert logs.dump(self.disk) == dump
        assert logs.goes_on(self.disk)


def life_changes() -> int:
    life = Life(FakeDisk())
    assert life.live()
    return len(logs.changes(life.disk))


CHANGES = life_changes()


@anyhow
def test_a_crash_before_any_change_of_the_disk_keeps_what_was_committed(strike: Strike) -> None:
    """B11, B13, C1: create, append, roll, close, open again."""
    for count in range(CHANGES + 1):
        life = Life(FakeDisk())
        logs.at_change(life.disk, count, lambda disk=life.disk: strike(disk))  # type: ignore[misc]
        assert life.live() == (count == CHANGES)
        strike(life.disk)
        life.check()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("then", ["kill", "power cut", "power cut, torn"])
def test_an_error_of_any_change_of_the_disk_keeps_what_was_committed(then: str, error: int) -> None:
    """B1, B2, C1: and what the next start shows stays, even if a failed sync had left it in memory only."""

    def fail() -> None:
        raise OSError(error, "broken")

    for count in range(CHANGES):
        life = Life(FakeDisk())
        logs.at_change(life.disk, count, fail)
        if life.live():
            assert error == errno.ENOSPC, "only a roll goes on without room, in the old segment"
        STRIKES[then](life.disk)
        shown = logs.dump(life.disk)
        life.disk.cut_power()
        assert logs.dump(life.disk) == shown
        life.check()


def torn() -> FakeDisk:
    disk = logs.crashed()
    last = disk.segments()[-1]
    disk.put(last, disk.get(last)[:-1])
    return disk


def zeros() -> FakeDisk:
    disk = logs.crashed()
    last = disk.segments()[-1]
    disk.put(last, disk.get(last) + bytes(1000))
    return disk


def torn_header() -> FakeDisk:
    disk = logs.crashed()
    last = disk.segments()[-1]
    disk.put(last, disk.get(last)[: HEADER_BYTES // 2])
    return disk


def unsynced() -> FakeDisk:
    """Killed with commits that are in memory only."""
    disk = FakeDisk()
    logs.write(disk, COMMITS[:2], clean=False)
    _, log = logs.start(disk)
    logs.append(log, COMMITS[2])
    logs.append(log, COMMITS[3])
    disk.kill()
    return disk


def rolling() -> FakeDisk:
    """Killed in a roll, when the new segment is there and the manifest does not know it."""
    disk = FakeDisk()
    _, log = logs.start(disk)

    def kill(operation: str, _name: str) -> None:
        if operation == "sync_directory" and "00000002.log" in disk.names:
            disk.kill()

    disk.fault = kill
    with pytest.raises(LogFailed):  # noqa: PT012
        for commit in COMMITS:
            logs.append(log, commit)
            log.commit()
    assert len(disk.segments()) == 2
    return disk


SCENES = {
    "fresh": FakeDisk,
    "closed": logs.closed,
    "crashed": logs.crashed,
    "torn": torn,
    "zeros": zeros,
    "torn header": torn_header,
    "unsynced": unsynced,
    "rolling": rolling,
}


def allowed_after(scene: str) -> list[logs.Dump]:
    """What a start may find: what it finds undisturbed, or, where nothing was promised, what is on disk."""
    return DUMPS[2:5] if scene == "unsynced" else [logs.dump(SCENES[scene]())]


@anyhow
@pytest.mark.parametrize("scene", SCENES)
def test_a_crash_before_any_change_of_a_recovery_leads_to_the_same_state(scene: str, strike: Strike) -> None:
    """B12"""
    allowed = allowed_after(scene)
    done = False
    for count in range(40):
        disk = SCENES[scene]()
        logs.at_change(disk, count, lambda disk=disk: strike(disk))  # type: ignore[misc]
        try:
            found, _ = logs.start(disk)
            done = True
            allowed = [found]  # shown, so it stays
        except OSError:
            done = False
        strike(disk)
        assert logs.dump(disk) in allowed
        assert logs.goes_on(disk)
        if done:
            break
    assert done


@anyhow
@pytest.mark.parametrize("scene", SCENES)
def test_recovery_killed_again_and_again_on_the_same_disk_leads_to_the_same_state(scene: str, strike: Strike) -> None:
    """B12: compound; nor does the disk fill with copies of the torn tail."""
    allowed = allowed_after(scene)
    disk = SCENES[scene]()
    for count in [*range(12), *range(12, -1, -1), *range(12)]:
        logs.at_change(disk, count, lambda: strike(disk))
        try:
            logs.start(disk)
        except OSError:
            continue
        strike(disk)
    assert logs.dump(disk) in allowed
    assert len([name for name in disk.names if ".torn-" in name]) <= 1
    assert logs.goes_on(disk)


def test_a_torn_tail_is_never_cut_off_before_its_copy_is_durable() -> None:
    """A1, B12: killed at any change of one recovery, without power at any change of the next."""
    tail = torn().get("00000003.log")
    for first in range(10):
        for second in range(10):
            disk = torn()
            for count, strike in ((first, disk.kill), (second, disk.cut_power)):
                logs.at_change(disk, count, strike)
                with contextlib.suppress(OSError):
                    logs.start(disk)
                strike()
            rest = tail[len(disk.get("00000003.log")) :].rstrip(b"\0")
            assert not rest or rest in [data for name, data in disk.content().items() if ".torn-" in name]


def test_a_crash_at_random_times_over_a_long_life_loses_nothing() -> None:
    """B11, B13: fifty crashes of every kind on one disk, a value more after each that was survived."""
    chance = random.Random(13)
    disk = FakeDisk()
    committed: list[bytes] = []
    for number in range(50):
        logs.at_change(disk, chance.randrange(40), lambda: chance.choice(list(STRIKES.values()))(disk))
        value = b"%d" % number
        pending: list[bytes] = []
        try:
            _, log = logs.start(disk)
            for part in range(chance.randrange(6)):
                pending = [b"%s.%d" % (value, part)]
                logs.append(log, ((ops.PUSH, b"q", tuple(pending)),))
                log.commit()
                committed += pending
                pending = []
            log.close()
        except (OSError, LogFailed):
            pass
        disk.cut_power()
        found = [value for entry in logs.dump(disk) for value in entry[2]]
        assert found in (committed, committed + pending)
        committed = found
