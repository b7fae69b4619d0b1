"""Backups: whole or refusing, of a server at work or of a log at rest, and nothing of theirs is ever written again."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from api.cli.main import main as holdfast
from engine.embedded.recovery import applying, recover
from engine.limits import Limits
from engine.store import ops
from engine.store.state import State
from tests.harness import damage, logs
from tests.harness.damage import HEALTHY, STATES, Files, disk_of
from tests.harness.disk import FakeDisk, failing
from tests.harness.process import Server
from wal.files import DiskDirectory
from wal.log import Log
from wal.manifest import MANIFEST_NAME, UNFINISHED
from wal.segment import Damage
from wal.tools import copying
from wal.tools.backup import Backup, NotEmpty, backup
from wal.tools.view import NoLog

CLOSED = HEALTHY["closed"]
FIRST, MIDDLE, LAST = damage.segments(CLOSED)


def quiet(_done: int, _total: int) -> None:
    """Shows no progress."""


def copy(source: FakeDisk, target: FakeDisk, *, verify: bool = True) -> Backup:
    """Makes a backup beside whoever holds the source, as the command does."""
    directory, destination = source.beside(), target.directory()
    try:
        return backup(directory, destination, (lambda: applying(State())) if verify else None, quiet, quiet)
    finally:
        directory.close()
        destination.close()


@pytest.mark.parametrize("which", HEALTHY)
def test_a_copy_holds_everything_and_starts_on_its_own(which: str) -> None:
    source, target = disk_of(HEALTHY[which]), FakeDisk()
    done = copy(source, target)
    assert source.content() == HEALTHY[which]
    assert done.last_lsn == 12
    assert done.size_bytes == sum(len(data) for name, data in target.content().items() if name != MANIFEST_NAME)
    target.cut_power()
    assert logs.dump(target) == STATES[which][12]
    assert logs.goes_on(target)
    assert source.content() == HEALTHY[which], "what the copy does is its own"


def test_sealed_files_are_shared_and_the_open_segment_is_not() -> None:
    source, target = disk_of(CLOSED), FakeDisk()
    done = copy(source, target)
    shared = {name for name in CLOSED if source.names[name] is target.names.get(name)}
    assert shared == {FIRST, MIDDLE}
    assert done.linked_bytes == len(CLOSED[FIRST]) + len(CLOSED[MIDDLE])


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_on_another_file_system_everything_is_copied(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "READ_BYTES", 50)  # in several pieces
    source, target = disk_of(CLOSED), FakeDisk()

    def fault(operation: str, _name: str) -> None:
        if operation == "link":
            raise OSError(number, "cannot link")

    target.fault = fault
    done = copy(source, target)
    assert done.linked_bytes == 0
    assert not any(source.names[name] is target.names.get(name) for name in CLOSED)
    target.cut_power()
    assert logs.dump(target) == STATES["closed"][12]


def test_a_torn_tail_stays_behind_and_the_copy_ends_as_after_a_clean_close() -> None:
    """A2: so every flipped bit in it will be found."""
    files = HEALTHY["crashed"] | {LAST: CLOSED[LAST][:-1]}
    target = FakeDisk()
    assert copy(disk_of(files), target).last_lsn == 10
    assert logs.dump(target.copy()) == STATES["crashed"][10]
    for name, data in target.content().items():
        for at in range(0, len(data), 5):
            broken = target.copy()
            broken.put(name, data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])
            with pytest.raises(Damage):
                logs.start(broken)


@pytest.mark.parametrize("files", HEALTHY.values(), ids=HEALTHY)
@pytest.mark.parametrize("folding", [False, True])
def test_what_was_acknowledged_before_is_in_the_copy_whatever_the_server_does_meanwhile(
    files: Files, folding: bool
) -> None:
    """At whatever moment it commits, rolls, folds and removes files."""
    still = disk_of(files)
    logs.start(still)
    still.log.clear()
    copy(still, FakeDisk())
    for moment in range(len(still.log)):
        source, target = disk_of(files), FakeDisk()
        _, log = logs.start(source)
        logs.append(log, ((ops.PUT, b"acknowledged", b"before", None),))
        log.commit()

        def work(log: Log = log, source: FakeDisk = source) -> None:
            for number in range(8):
                logs.append(log, ((ops.PUT, b"meanwhile", b"%d" % number, None),))
                log.commit()
            if folding:
                log.seal()
                damage.checkpoint(log, source.beside())

        source.fault = once_at(moment, work)
        done = copy(source, target)
        assert done.last_lsn >= 13
        source.fault = None
        target.cut_power()
        assert ("value", b"acknowledged", b"before", None) in logs.dump(target)
        log.abandon()


def once_at(moment: int, act: Callable[[], None]) -> Callable[[str, str], None]:
    """A fault that only calls `act`, before the operation with this number."""
    left = moment

    def fault(_operation: str, _name: str) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            act()

    return fault


def test_a_frame_that_is_missed_while_it_is_written_is_copied_as_well() -> None:
    for moment in (1, 2):  # later reads come after it has been seen
        source, target = disk_of(HEALTHY["crashed"]), FakeDisk()
        source.fault = damage.racing(source, LAST, moment)
        assert copy(source, target).last_lsn == 12
        assert logs.dump(target) == STATES["crashed"][12]


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("which", ["crashed", "closed with snapshot"])
def test_after_a_crash_at_any_moment_the_copy_is_whole_or_refuses(which: str, cut: bool) -> None:
    moment, whole = 0, False
    while not whole:
        source, target = disk_of(HEALTHY[which]), FakeDisk()
        logs.at_change(target, moment, target.cut_power if cut else target.kill)
        try:
            copy(source, target)
            whole = True
        except OSError:
            pass
        target.fault = None
        found = {name for name in target.content() if not name.endswith(".tmp")}
        if MANIFEST_NAME not in found:
            assert found == set(), "nothing stands there before what makes a start refuse"
        elif target.get(MANIFEST_NAME) == UNFINISHED:
            with pytest.raises(Damage, match="this is a backup that was not finished"):
                logs.start(target)
        else:
            assert logs.dump(target) == STATES[which][12]
        assert source.content() == HEALTHY[which]
        moment += 1
    assert moment > 10


@pytest.mark.parametrize("operation", ["write", "sync", "link", "rename", "sync_directory"])
def test_when_the_disk_refuses_nothing_is_left(operation: str) -> None:
    source, target = disk_of(CLOSED), FakeDisk()
    struck = False

    def fault(found: str, _name: str) -> None:
        nonlocal struck
        if found == operation and not struck and MANIFEST_NAME in target.names:
            struck = True
            raise OSError(errno.ENOSPC, "No space left on device")

    target.fault = fault
    with pytest.raises(OSError, match="No space"):
        copy(source, target)
    assert target.content() == {}
    assert copy(source, target).last_lsn == 12


def test_a_damaged_log_is_not_taken_for_a_backup() -> None:
    """Damage is found in the copy, and named in the original."""
    for name, files in damage.flips(CLOSED):
        source, target = disk_of(files), FakeDisk()
        with pytest.raises(Damage) as caught:
            copy(source, target)
        assert caught.value.directory == "fake", name
        assert target.content() == {}
        assert source.content() == files


def test_a_directory_with_something_in_it_or_without_a_log_is_refused() -> None:
    with pytest.raises(NotEmpty):
        copy(disk_of(CLOSED), disk_of({"notes.txt": b""}))
    with pytest.raises(NoLog):
        copy(disk_of({}), FakeDisk())


def test_an_error_while_reading_is_no_backup() -> None:
    source, target = disk_of(CLOSED), FakeDisk()
    source.fault = failing("read")
    with pytest.raises(OSError, match="injected"):
        copy(source, target)
    assert target.content() == {}


def test_on_a_real_disk_files_are_shared_and_the_copy_goes_its_own_way(tmp_path: Path) -> None:
    """Also when the original is gone."""
    source, target = tmp_path / "data", tmp_path / "copy"
    source.mkdir(mode=0o700)
    for name, data in CLOSED.items():
        (source / name).write_bytes(data)
    directory, destination = DiskDirectory(source, beside=True), DiskDirectory(target)
    backup(directory, destination, lambda: applying(State()), quiet, quiet)
    directory.close()
    destination.close()
    assert (target / FIRST).samefile(source / FIRST)
    assert not (target / LAST).samefile(source / LAST)
    for path in source.iterdir():
        path.unlink()
    with Server(target) as server:
        assert server.post({"command": "GET c"})[0] == 200
        assert "replayed 12 records" in server.log


class Writer(threading.Thread):
    """A client that counts, and notes up to where it was answered."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.answered = 0
        self.done = threading.Event()
        self._url = url

    def run(self) -> None:
        """Pushes numbers until told to stop."""
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self.done.is_set():
                value = f"{self.answered + 1} {'x' * 4000}"
                client.post(self._url, json={"command": "QPUSH", "key": "numbers", "value": value}).raise_for_status()
                self.answered += 1


def length_of(path: Path) -> int:
    """How many numbers a copy holds, in order from 1 and without gaps."""
    state, log = recover(DiskDirectory(path), Limits(), wall_ms=logs.TIME_MS)
    log.abandon()
    ((_, key, *_, values),) = state.dump()
    assert key == b"numbers"
    assert [int(value.split()[0]) for value in values] == list(range(1, len(values) + 1))
    return len(values)


def test_a_backup_of_a_server_under_load_holds_all_that_was_answered_before(tmp_path: Path) -> None:
    """While it rolls, and while checkpoints run."""
    with Server(tmp_path / "data", "--segment-size", "64KiB") as server:
        writer = Writer(server.url)
        writer.start()
        try:
            for number in range(5):
                while writer.answered < 60 * (number + 1):
                    assert writer.is_alive()
                    writer.done.wait(0.005)
                answered, target = writer.answered, tmp_path / f"copy{number}"
                result = CliRunner().invoke(holdfast, ["backup", str(server.data), str(target)])
                assert result.exit_code == 0, result.output
                assert length_of(target) >= answered
        finally:
            writer.done.set()
            writer.join()
        assert server.get("/stats")[1]["checkpoints"] > 0
