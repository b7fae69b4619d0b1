"""The process that folds: real files, a real child, and how it ends when something is wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.embedded import child
from engine.embedded.child import SILENCE_MAX_S, Child
from engine.embedded.fold import TICK, Orphaned, _look_after, child_command, fold, pack_result, unpack_result
from engine.embedded.recovery import recover
from engine.face import FoldFailed
from engine.limits import Limits
from engine.store import ops
from tests.harness import logs
from tests.harness.logs import COMMITS, DUMPS, TIME_MS
from tests.harness.process import ROOT
from wal.files import DiskDirectory
from wal.log import Log
from wal.manifest import Snapshot
from wal.segment import Damage
from wal.snapshot import FoldPlan


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def log(data: Path) -> Iterator[Log]:
    """A log of all commits, open and sealed, that another process may fold."""
    log = opened(data)[1]
    for commit in COMMITS:
        logs.append(log, commit)
        log.commit()
    log.seal()
    yield log
    with contextlib.suppress(OSError):  # the test may have closed it
        log.abandon()


def opened(data: Path) -> tuple[list[tuple[Any, ...]], Log]:
    state, log = recover(DiskDirectory(data), Limits(), wall_ms=TIME_MS, segment_bytes_max=64 * 1024)
    return list(state.dump()), log


def plan_of(log: Log) -> FoldPlan:
    plan = log.plan_fold()
    assert plan is not None
    return plan


def snapshots(data: Path) -> list[str]:
    return sorted(path.name for path in data.glob("*.snapshot*"))


async def test_a_child_folds_beside_the_server_that_holds_the_lock(data: Path, log: Log) -> None:
    """C5"""
    plan = plan_of(log)
    entry = await Child(str(data))(plan)
    assert (data / plan.temporary_name).stat().st_size == entry.size_bytes
    assert (data / plan.temporary_name).stat().st_mode & 0o777 == 0o600
    log.install(plan, entry)
    log.remove_folded()
    log.close()
    assert sorted(DiskDirectory(data, beside=True).names()) == ["00000001.snapshot", "00000002.log", "LOCK", "MANIFEST"]
    assert opened(data)[0] == DUMPS[-1]


async def test_a_child_writes_the_very_bytes_that_a_fold_in_this_process_writes(data: Path, log: Log) -> None:
    """I7, D4"""
    plan = plan_of(log)
    entry = await Child(str(data))(plan)
    written = (data / plan.temporary_name).read_bytes()
    (data / plan.temporary_name).unlink()
    assert fold(DiskDirectory(data, beside=True), plan) == entry
    assert (data / plan.temporary_name).read_bytes() == written


async def test_damage_in_a_sealed_segment_is_told_as_a_start_tells_it(data: Path, log: Log) -> None:
    """A2"""
    segment = data / "00000001.log"
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    with pytest.raises(Damage) as caught:
        await Child(str(data))(plan_of(log))
    log.abandon()
    with pytest.raises(Damage) as at_start:
        opened(data)
    assert (caught.value.file, caught.value.offset, caught.value.lsn) == (
        at_start.value.file,
        at_start.value.offset,
        at_start.value.lsn,
    )
    assert str(data) in str(caught.value)
    assert snapshots(data) == []


async def test_a_sealed_segment_that_is_missing_is_damage(data: Path, log: Log) -> None:
    """A8"""
    (data / "00000001.log").unlink()
    with pytest.raises(Damage, match="missing"):
        await Child(str(data))(plan_of(log))


async def test_an_error_of_the_disk_comes_back_as_what_it_is(data: Path, log: Log) -> None:
    """C4: here the name is taken, which no fold of ours does."""
    plan = plan_of(log)
    (data / plan.temporary_name).write_bytes(b"")
    with pytest.raises(FileExistsError) as caught:
        await Child(str(data))(plan)
    assert caught.value.errno == errno.EEXIST


async def test_a_disk_without_room_comes_back_as_such_and_nothing_is_left(
    data: Path, log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """C4: the child may write no more than 4 KiB."""
    logs.append(log, ((ops.PUT, b"large", bytes(100_000), None),))
    log.commit()
    log.seal()
    script = tmp_path / "limited"
    script.write_text(f"#!/bin/sh\nulimit -f 4\ntrap '' XFSZ\nexec {sys.executable} \"$@\"\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(OSError, match="too large") as caught:
        await Child(str(data))(plan_of(log))
    assert caught.value.errno == errno.EFBIG
    assert snapshots(data) == []


async def test_a_child_that_is_killed_has_failed(data: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """C4"""
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    command = "kill -KILL $$"
    with pytest.raises(FoldFailed, match="ended by SIGKILL"):
        await through_shell(data, log, monkeypatch, command)
    with pytest.raises(FoldFailed, match="failed: this is why"):
        await through_shell(data, log, monkeypatch, "echo this is why >&2; exit 1")
    with pytest.raises(FoldFailed, match="ended by signal 40"):
        await through_shell(data, log, monkeypatch, "kill -40 $$")
    for words in ("true", "echo hello"):
        with pytest.raises(FoldFailed, match="no result"):
            await through_shell(data, log, monkeypatch, words)


def shell(data: Path, command: str) -> str:
    """A shell script that may stand in place of the interpreter."""
    script = data.parent / "interpreter"
    script.write_text(f"#!/bin/sh\n{command}\n")
    script.chmod(0o700)
    return str(script)


async def through_shell(
    data: Path, log: Log, monkeypatch: pytest.MonkeyPatch, command: str, silence_max_s: float = SILENCE_MAX_S
) -> Snapshot:
    """Folds with a shell script in place of the interpreter."""
    monkeypatch.setattr(sys, "executable", shell(data, command))
    return await Child(str(data), silence_max_s)(plan_of(log))


async def test_a_child_that_says_nothing_for_a_while_is_ended(
    data: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4: it was stopped, or its disk hangs; neither what it is told nor its silence may hold the server up."""
    note = data.parent / "pid"
    for words in (
        "exec sleep 600",
        "cat >/dev/null; printf '\\0'; exec >&-; exec sleep 600",
        "exec sleep 600 >&- 2>&-",
    ):
        with pytest.raises(FoldFailed, match="made no progress for 0 s, and was ended"):
            await through_shell(data, log, monkeypatch, f"echo $$ > {note}; {words}", silence_max_s=0.2)
        with pytest.raises(ProcessLookupError):
            os.kill(int(note.read_text()), 0)


async def test_a_child_that_cannot_be_killed_is_left_behind_and_no_other_started_beside_it(
    data: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4: as a process that hangs in the kernel."""
    kill = trio.Process.kill
    left: list[trio.Process] = []
    monkeypatch.setattr(trio.Process, "kill", lambda process: left.append(process))
    monkeypatch.setattr(child, "KILLED_WITHIN_S", 0.01)
    fold_once = Child(str(data), silence_max_s=0.2)
    interpreter = sys.executable
    monkeypatch.setattr(sys, "executable", shell(data, "exec sleep 600"))
    with pytest.raises(FoldFailed, match="made no progress"):
        await fold_once(plan_of(log))
    monkeypatch.setattr(sys, "executable", interpreter)
    with pytest.raises(FoldFailed, match=f"process {left[0].pid} of an earlier one hangs, and cannot be killed"):
        await fold_once(plan_of(log))
    kill(left[0])
    await left[0].wait()
    fold_once.silence_max_s = SILENCE_MAX_S
    assert (await fold_once(plan_of(log))).number == 1


def test_a_child_says_once_a_second_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.0, 0.5, 0.99, 1.0, 1.0, 1.5, 2.7, 2.7])
    said: list[bytes] = []
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    monkeypatch.setattr(os, "write", lambda _descriptor, data: said.append(data))
    check = _look_after(os.getppid())
    for _ in range(6):
        check()
    assert said == [TICK] * 3


async def test_a_child_takes_no_more_memory_than_the_container_leaves(
    data: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4: in Kubernetes the kernel would end the server with it."""
    for number in range(40):
        logs.append(log, ((ops.PUT, b"large%d" % number, bytes(1 << 20), None),))
        log.commit()
    log.seal()
    limited = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from engine.embedded import memory_limit, fold;"
        "memory_limit.free_bytes = lambda: 36 << 20; fold.main()"
    )
    *_, directory, parent = child_command(str(data), os.getpid())
    monkeypatch.setattr(child, "child_command", lambda *_: [sys.executable, "-c", limited, directory, parent])
    with pytest.raises(OSError, match="the container's limit leaves 33,973,862 bytes for it") as caught:
        await Child(str(data))(plan_of(log))
    assert caught.value.errno == errno.ENOMEM
    assert snapshots(data) == []


async def test_a_child_that_cannot_be_started_is_no_error_of_the_disk(
    data: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update may have taken the interpreter away."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FoldFailed, match="cannot be started"):
        await Child(str(data))(plan_of(log))


async def test_a_fold_that_is_given_up_ends_its_process(data: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """H1: at once, also if it does not listen."""
    note = data.parent / "pid"
    deaf = f"trap '' TERM INT; echo $$ > {note}.new; mv {note}.new {note}; exec sleep 600"
    with trio.move_on_after(60) as scope:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await through_shell(data, log, monkeypatch, deaf)

            nursery.start_soon(run)
            while not note.exists():  # noqa: ASYNC110
                await trio.sleep(0.005)  # a process has no event to wait for
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


async def test_packages_of_the_same_names_are_not_in_the_way(
    data: Path, log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether they come by PYTHONPATH or lie where the server was started."""
    for name in ("api", "engine", "wal"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('this is the one of the project')")
    monkeypatch.chdir(tmp_path)
    for path in ("", ".", str(tmp_path)):
        monkeypatch.setenv("PYTHONPATH", path)
        plan = plan_of(log)
        assert (await Child(str(data))(plan)).number == plan.header.number
        (data / plan.temporary_name).unlink()


def launch(data: Path, plan: bytes, parent: int) -> subprocess.CompletedProcess[bytes]:
    """Runs the process with a plan, as a child of `parent`."""
    return subprocess.run(child_command(str(data), parent), input=plan, capture_output=True, timeout=60, check=False)


def test_a_process_whose_server_is_gone_leaves_nothing(data: Path, log: Log) -> None:
    """C3: the parent it was started for is not its parent any more."""
    done = launch(data, plan_of(log).pack(), parent=1)
    assert done.returncode != 0
    assert done.stdout == b""
    assert snapshots(data) == []


@pytest.mark.parametrize("plan", [b"", b"\xc1", b"\x92\x01\x02", b"x" * 100])
def test_half_a_plan_is_no_plan(data: Path, log: Log, plan: bytes) -> None:
    """The server died while it was told."""
    done = launch(data, plan, parent=os.getpid())
    assert done.returncode > 0
    assert snapshots(data) == []


def test_a_fold_gives_up_wherever_it_notices_that_the_server_is_gone(data: Path, log: Log) -> None:
    """C3"""
    for count in range(100):
        left = count

        def check() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Orphaned

        try:
            fold(DiskDirectory(data, beside=True), plan_of(log), check)
        except Orphaned:
            assert snapshots(data) == []
        else:
            break
    assert 3 < count < 100
    assert len(snapshots(data)) == 1


OUTCOMES: list[Snapshot | Damage | OSError] = [
    Snapshot(3, b"\x00\xff12345\n", 1 << 40, TIME_MS),
    Damage("/data/\udcff is no UTF-8", "00000003.log", 1 << 33, 1 << 50, "broken"),
    Damage("/data with ünicode", "00000003.log", 1 << 33, 1 << 50, 'it\'s "broken"\n'),
    OSError(errno.ENOSPC, "No space left on device", "00000003.snapshot.tmp"),
    OSError(errno.EIO, "Input/output error"),
    OSError("this holder was killed"),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
def test_what_came_of_it_survives_the_way_back(outcome: Snapshot | Damage | OSError) -> None:
    packed = pack_result(outcome)
    if isinstance(outcome, Snapshot):
        assert unpack_result(packed) == outcome
        return
    with pytest.raises(type(outcome)) as caught:
        unpack_result(packed)
    assert type(caught.value) is type(outcome)
    if isinstance(outcome, OSError):
        assert (caught.value.errno, caught.value.filename) == (outcome.errno, outcome.filename)  # type: ignore[union-attr]
        assert (outcome.strerror or "killed") in str(caught.value)
    else:
        assert str(caught.value) == str(outcome)


def test_a_plan_survives_the_way_there(log: Log) -> None:
    plan = plan_of(log)
    assert FoldPlan.unpack(plan.pack()) == plan
