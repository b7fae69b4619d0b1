"""The real directory: modes, lock, links, short writes; everything else is tested on the fake one."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import logs
from tests.harness.disk import FakeDisk
from tests.harness.effort import many
from wal.files import LOCK_NAME, DirectoryError, DiskDirectory, DiskFile, LockedError
from wal.log import Log
from wal.segment import Damage


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DiskDirectory]:
    directory = DiskDirectory(tmp_path / "data")
    yield directory
    directory.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def descriptors() -> set[int]:
    """The open descriptors of this process, without the one that lists them."""
    return {int(link.name) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


def recover(path: Path) -> Log:
    """Opens the log in a real directory, or gives the directory up."""
    directory = DiskDirectory(path)
    try:
        return Log.recover(directory, lambda _frame: None, time_ms=logs.TIME_MS)
    except BaseException:
        directory.close()
        raise


def test_directories_and_files_are_private_whatever_the_umask(umask: None, tmp_path: Path) -> None:
    """B16: those above the data directory too, when it makes them."""
    path = tmp_path / "not" / "there"
    log = recover(path)
    log.close()
    assert [mode(path.parent), mode(path)] == [0o700, 0o700]
    assert {file.name: oct(mode(file)) for file in path.iterdir()} == dict.fromkeys(
        ["LOCK", "MANIFEST", "00000001.log"], "0o600"
    )


@pytest.mark.parametrize("bits", [0o777, 0o707, 0o702])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, bits: int) -> None:
    """B16: the message names a way out, which works; nothing is changed."""
    path = tmp_path / "data"
    path.mkdir()
    path.chmod(bits)
    with pytest.raises(DirectoryError, match=f"name a directory below it, like {path}/holdfast"):
        DiskDirectory(path)
    assert list(path.iterdir()) == []
    DiskDirectory(path / "holdfast").close()
    assert mode(path / "holdfast") == 0o700


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    """B16"""
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "file" / "far" / "below"):
        with pytest.raises(DirectoryError, match="is not a directory"):
            DiskDirectory(path)
    assert (tmp_path / "file").read_text() == "text"


def test_a_second_holder_is_refused_and_told_who_the_first_is(directory: DiskDirectory) -> None:
    """B15"""
    with pytest.raises(LockedError, match=f"is in use by process {os.getpid()}") as caught:
        DiskDirectory(Path(directory.path))
    assert caught.value.holder == f"process {os.getpid()}"
    directory.names()  # the first goes on


def test_a_second_holder_is_refused_also_when_somebody_removed_the_lock_file(directory: DiskDirectory) -> None:
    """B15"""
    (Path(directory.path) / LOCK_NAME).unlink()
    with pytest.raises(LockedError):
        DiskDirectory(Path(directory.path))


def test_another_process_is_refused_too(directory: DiskDirectory) -> None:
    """B15"""
    program = (
        "import sys; from pathlib import Path; from wal.files import *\n"
        "try: DiskDirectory(Path(sys.argv[1]))\n"
        "except LockedError as error: print(error.holder)"
    )
    root = Path(__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", program, directory.path], cwd=root, capture_output=True, text=True, check=True
    )
    assert answer.stdout == f"process {os.getpid()}\n"


def test_a_lock_that_was_given_up_or_left_behind_blocks_nobody(tmp_path: Path) -> None:
    """B15: the lock is the system's, not the file."""
    path = tmp_path / "data"
    path.mkdir(0o700)
    (path / LOCK_NAME).write_text("process 1, and a text longer than the next\n")
    for _ in range(2):
        DiskDirectory(path).close()
        assert (path / LOCK_NAME).read_text() == f"process {os.getpid()}\n"


def test_a_holder_that_wrote_no_name_is_another_process(tmp_path: Path) -> None:
    """B15"""
    path = tmp_path / "data"
    path.mkdir(0o700)
    with (path / LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="in use by another process"):
            DiskDirectory(path)


def test_no_descriptor_is_inherited_and_none_is_left_open(tmp_path: Path) -> None:
    """B15, H3"""
    before = descriptors()
    log = recover(tmp_path / "data")
    ours = descriptors() - before
    assert len(ours) == 3  # directory, lock, segment
    assert not any(os.get_inheritable(fd) for fd in ours)
    with pytest.raises(LockedError):
        DiskDirectory(tmp_path / "data")
    log.close()
    assert descriptors() == before


@pytest.mark.parametrize("target", ["elsewhere", "missing"])
def test_a_lock_that_is_a_symbolic_link_is_refused(tmp_path: Path, target: str) -> None:
    """B16"""
    path = tmp_path / "data"
    path.mkdir(0o700)
    (tmp_path / "elsewhere").write_text("theirs")
    (path / LOCK_NAME).symlink_to(tmp_path / target)
    with pytest.raises(DirectoryError, match="LOCK is a symbolic link"):
        DiskDirectory(path)
    assert (tmp_path / "elsewhere").read_text() == "theirs"
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("name", ["00000001.log", "MANIFEST"])
def test_a_file_of_the_log_that_is_a_symbolic_link_counts_as_missing(tmp_path: Path, name: str) -> None:
    """B16: whoever can place a link must not make us write elsewhere."""
    path = tmp_path / "data"
    log = recover(path)
    log.append([b"\x91\x01"], 0)
    log.close()
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(Damage, match="missing"):
        recover(path)
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_files_are_not_opened_through_links(directory: DiskDirectory, tmp_path: Path) -> None:
    """B16"""
    (tmp_path / "elsewhere").write_text("theirs")
    (Path(directory.path) / "link").symlink_to(tmp_path / "elsewhere")
    for use in (directory.read, directory.create, lambda name: directory.open(name, 0)):
        with pytest.raises(OSError, match=r"symbolic links|exists"):
            use("link")
    assert directory.names() == [LOCK_NAME]


def test_a_directory_swapped_under_the_same_path_is_not_touched(directory: DiskDirectory, tmp_path: Path) -> None:
    """B16"""
    path = Path(directory.path)
    path.rename(tmp_path / "moved")
    path.mkdir()
    file = directory.create("file")
    file.close()
    assert list(path.iterdir()) == []
    assert (tmp_path / "moved" / "file").exists()


def test_a_file_is_created_written_renamed_read_and_removed(directory: DiskDirectory) -> None:
    file = directory.create("one")
    file.write(b"abc")
    file.write(b"def")
    file.sync()
    directory.rename("one", "two")
    directory.sync()
    file.write(b"ghi")
    file.close()
    assert directory.read("two") == b"abcdefghi"
    assert directory.size("two") == 9
    assert directory.names() == [LOCK_NAME, "two"]
    with pytest.raises(FileExistsError):
        directory.create("two")
    directory.remove("two")
    with pytest.raises(FileNotFoundError):
        directory.read("two")


def test_writing_goes_on_where_a_file_was_opened_or_cut(directory: DiskDirectory) -> None:
    file = directory.create("file")
    file.write(b"0123456789")
    file.close()
    file = directory.open("file", 4)
    file.write(b"four")
    assert directory.read("file") == b"0123four89"
    file.truncate(9)
    file.write(b"!")
    assert directory.read("file") == b"0123four!"
    file.truncate(6)
    file.write(b"-end")
    file.close()
    assert directory.read("file") == b"0123fo-end"


def test_a_file_can_be_allocated_where_the_file_system_leaves_that_to_the_c_library(directory: DiskDirectory) -> None:
    """It reads the blocks that are there, and without permission to read says that the descriptor is bad."""
    directory.create("file").close()
    for file in (directory.open("file", 0), directory.create("other")):
        flags = fcntl.fcntl(file._descriptor, fcntl.F_GETFL)  # type: ignore[attr-defined]
        assert flags & os.O_ACCMODE == os.O_RDWR
        file.close()


def test_a_closed_file_is_not_mistaken_for_the_next_with_its_number(directory: DiskDirectory) -> None:
    first = directory.create("first")
    first.close()
    second = directory.create("second")
    uses: list[Callable[[], None]] = [lambda: first.write(b"x"), first.sync, lambda: first.truncate(0), first.close]
    for use in uses:
        with pytest.raises((OSError, ValueError), match="descriptor"):
            use()
    second.close()
    assert directory.read("second") == b""


def test_short_writes_are_completed(directory: DiskDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """B5"""
    chance, data = random.Random(5), random.Random(6).randbytes(10_000)
    file = directory.create("file")
    system_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, rest: system_write(fd, rest[: chance.randint(1, 100)]))
    file.write(data)
    monkeypatch.undo()
    file.close()
    assert directory.read("file") == data


def test_a_short_write_before_an_error_is_an_error(directory: DiskDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """B3, B5"""
    file = directory.create("file")
    system_write = os.write
    answers = iter([3, 2])

    def write(fd: int, rest: memoryview) -> int:
        count = next(answers, None)
        if count is None:
            raise OSError(28, "No space left on device")
        return system_write(fd, rest[:count])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"):
        file.write(b"0123456789")
    monkeypatch.undo()
    file.close()
    assert directory.read("file") == b"01234"


def test_signals_do_not_tear_a_write_apart() -> None:
    """B5: EINTR and the short counts that come with it, on a pipe, where the system does both."""
    data = random.Random(7).randbytes(1024 * 1024)
    reading, writing = os.pipe()
    received: list[bytes] = []

    def drain() -> None:
        while part := os.read(reading, 20_000):
            received.append(part)

    file, drainer = DiskFile(writing), threading.Thread(target=drain)
    signals = 0

    def count(_number: int, _frame: object) -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            drainer.start()  # until here the pipe was full, and the write was interrupted while it waited

    before = signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.0005)
    try:
        file.write(data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    file.close()
    drainer.join()
    os.close(reading)
    assert b"".join(received) == data
    assert signals > 0


def test_a_new_directory_is_synced_into_those_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B13: else a power cut takes the whole directory, and every acknowledged write with it."""
    synced: list[str] = []
    system_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        system_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "a" / "b" / "data"
    DiskDirectory(path).close()
    assert [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")] == synced[-3:]
    synced.clear()
    DiskDirectory(path).close()
    assert synced == [str(tmp_path / "a" / "b")]


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _data: bytes, _offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    DiskDirectory(tmp_path / "data").close()


def test_the_log_on_a_real_disk_is_the_log_on_the_fake_one(tmp_path: Path) -> None:
    """The fake is a fair stand-in: the same commits make the same files but for random identities."""
    fake = FakeDisk()
    logs.write(fake, clean=True)
    path = tmp_path / "data"
    for rounds in range(3):
        directory = DiskDirectory(path)
        log = Log.recover(
            directory, lambda _frame: None, time_ms=logs.TIME_MS, segment_bytes_max=logs.SEGMENT_BYTES_MAX
        )
        if rounds == 0:
            for number, commit in enumerate(logs.COMMITS):
                logs.append(log, commit, logs.TIME_MS + number)
                log.commit()
        log.close()
    sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.name != LOCK_NAME}
    assert sizes == {name: len(data) for name, data in fake.content().items()}


def test_a_torn_tail_on_a_real_disk_heals(tmp_path: Path) -> None:
    """A1"""
    fake = logs.crashed()
    path = tmp_path / "data"
    path.mkdir(0o700)
    for name, data in fake.content().items():
        (path / name).write_bytes(data)
    last = path / fake.segments()[-1]
    torn = last.read_bytes()[:-2]
    last.write_bytes(torn)
    log = recover(path)
    assert log.recovery.torn_bytes > 0
    assert (path / f"{last.name}.torn-{logs.TIME_MS}").read_bytes() == torn[-log.recovery.torn_bytes :]
    log.append([b"\x91\x01"], 0)
    log.close()
    log = recover(path)
    assert log.recovery.torn_bytes == 0
    log.close()


def test_a_range_of_a_file_is_read(directory: DiskDirectory) -> None:
    file = directory.create("a")
    file.write(b"0123456789")
    file.close()
    assert directory.read("a", 3) == b"3456789"
    assert directory.read("a", 3, 4) == b"3456"
    assert directory.read("a", 8, 4) == b"89"
    assert directory.read("a", 20, 4) == b""


def test_allocated_room_reads_as_zeros_and_writing_goes_on_before_it(directory: DiskDirectory) -> None:
    file = directory.create("a")
    file.write(b"head")
    file.allocate(10_000)
    assert directory.size("a") == 10_000
    file.write(b"tail")
    file.allocate(5)  # never makes a file shorter
    assert directory.read("a") == b"headtail".ljust(10_000, b"\0")
    file.close()


def test_a_file_that_was_removed_replaced_or_renamed_is_noticed(directory: DiskDirectory) -> None:
    """B10"""
    file = directory.create("a")
    assert directory.length_of("a", file) == 0
    directory.rename("a", "b")
    assert directory.length_of("a", file) is None
    assert directory.length_of("b", file) == 0
    directory.create("a").close()
    directory.rename("a", "b")
    assert directory.length_of("b", file) is None
    directory.remove("b")
    assert directory.length_of("b", file) is None
    file.close()


def test_a_directory_that_was_moved_away_is_noticed(directory: DiskDirectory) -> None:
    """B10"""
    assert directory.is_in_place()
    path = Path(directory.path)
    path.rename(path.with_name("elsewhere"))
    assert not directory.is_in_place()
    path.mkdir()
    assert not directory.is_in_place()


def test_a_disk_tells_its_size_and_what_is_left(directory: DiskDirectory) -> None:
    assert 0 < directory.free_bytes() < directory.capacity_bytes()


def test_a_directory_is_opened_beside_its_holder_without_a_lock_and_never_made(directory: DiskDirectory) -> None:
    beside = DiskDirectory(Path(directory.path), beside=True)
    directory.create("a").close()
    assert "a" in beside.names()
    beside.close()
    with pytest.raises(LockedError):
        DiskDirectory(Path(directory.path))
    with pytest.raises(FileNotFoundError):
        DiskDirectory(Path(directory.path) / "missing", beside=True)


def test_a_held_file_can_be_read_when_its_name_is_gone(directory: DiskDirectory) -> None:
    file = directory.create("a")
    file.write(b"0123")
    held = directory.hold("a")
    directory.remove("a")
    file.write(b"45")
    assert (held.size(), held.read(), held.read(2), held.read(1, 2)) == (6, b"012345", b"2345", b"12")
    assert held.read(9, 2) == b""
    before = descriptors()
    held.close()
    assert len(before - descriptors()) == 1
    file.close()
    with pytest.raises(FileNotFoundError):
        directory.hold("a")


def test_a_file_may_have_a_second_name_here_and_elsewhere(directory: DiskDirectory, tmp_path: Path) -> None:
    other = DiskDirectory(tmp_path / "other")
    directory.create("a").close()
    directory.link("a", directory, "b")
    directory.link("a", other, "c")
    with pytest.raises(FileExistsError):
        directory.link("a", other, "c")
    with pytest.raises(FileNotFoundError):
        directory.link("nowhere", other, "d")
    assert (tmp_path / "data" / "b").samefile(tmp_path / "other" / "c")
    other.close()


def test_two_threads_that_list_the_directory_at_once_both_see_every_name_once(directory: DiskDirectory) -> None:
    """B8: a checkpoint removes what it folded beside the commits, which list the directory as well."""
    expected = sorted([LOCK_NAME, *(f"{number:08}.log" for number in range(200))])
    for name in expected[:-1]:
        directory.create(name).close()
    begin = threading.Barrier(2)
    wrong: list[list[str]] = []

    def list_again_and_again() -> None:
        begin.wait()
        listings = (directory.names() for _ in range(many(400)))
        wrong.extend(found for found in listings if found != expected)

    before = descriptors()
    threads = [threading.Thread(target=list_again_and_again) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"{len(wrong)} listings of 200 names had {sorted(map(len, wrong))}"
    assert descriptors() == before


def test_an_error_says_where_the_file_is_and_names_no_other(tmp_path: Path) -> None:
    directory = DiskDirectory(tmp_path / "data")
    deeds = (directory.read, directory.remove, lambda name: directory.rename("other", name))
    for deed in deeds:
        with pytest.raises(FileNotFoundError) as caught:
            deed("name")
        assert str(caught.value) == f"[Errno 2] No such file or directory: '{tmp_path}/data/name'"
    directory.close()
