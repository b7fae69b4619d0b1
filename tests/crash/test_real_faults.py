"""Faults that the system really answers with: strace makes calls of a real server fail, wait, or kill it.

What the fake disk does exhaustively is shown here to hold for the process as a whole: exit code, message, and what
clients are told. Needs strace, and the right to trace one's own processes.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from engine.embedded.committer import SLOW_COMMIT_S
from engine.embedded.recovery import recover
from engine.limits import Limits
from tests.harness.load import check, new_books, run_load
from tests.harness.process import Server, child_of, stopping_in_a_checkpoint
from tests.harness.strace import CHANGES, READS, attached, strace
from tests.harness.waiting import wait_until
from wal.files import DiskDirectory

LOG_FAILED = 5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as server:
        yield server


def ask(server: Server, command: str) -> int | None:
    """The status of the answer; None when there was none."""
    try:
        return server.post({"command": command})[0]
    except httpx.TransportError:
        return None


def content(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


def values(server: Server, count: int) -> list[str | None]:
    return [server.post({"command": f"GET k{number}"})[1].get("value") for number in range(count)]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("fdatasync:error=EIO:when=1", "Input/output error"),
        ("fdatasync:error=ENOSPC:when=1", "No space left on device"),
        ("write:error=EIO", "Input/output error"),
    ],
)
def test_a_failed_write_or_sync_answers_nobody_and_ends_with_code_5(server: Server, fault: str, reason: str) -> None:
    """B1, B2: once is enough; the second fdatasync would succeed, and must not be believed."""
    for number in range(8):
        server.post({"command": f"SET k{number} old"})
    segment = server.data / "00000001.log"
    with ThreadPoolExecutor(9) as pool, attached(server, fault, only=[segment]):
        asked = [pool.submit(ask, server, f"SET k{number} new") for number in range(8)]
        asked.append(pool.submit(ask, server, "BQPOP jobs"))
        assert {future.result() for future in asked} <= {None, 503}
        assert server.wait() == LOG_FAILED
    assert segment.name in server.log
    assert reason in server.log
    server.start()
    assert set(values(server, 8)) <= {"old", "new"}


def test_a_sync_that_fails_under_load_loses_nothing_that_was_answered(server: Server) -> None:
    """B1, I1 to I6."""
    books = new_books()

    async def fail() -> None:
        await trio.sleep(0.1)
        with attached(server, "fdatasync:error=EIO:when=20"):
            assert await trio.to_thread.run_sync(server.wait) == LOG_FAILED

    trio.run(run_load, (server.host, server.port), books, 1, fail)
    assert books.acknowledged
    server.start()
    trio.run(check, (server.host, server.port), books, list(books.queues))


def test_after_a_failed_sync_the_next_start_writes_the_tail_anew_and_syncs_it_before_it_answers(
    server: Server, tmp_path: Path
) -> None:
    """B1: by the trace. After the error the kernel takes the pages for clean, so a sync alone would bring nothing."""
    server.post({"command": "SET a 1"})
    acknowledged_bytes = server.get("/stats")[1]["log_bytes"]
    with attached(server, "fdatasync:error=EIO:when=1"):
        assert ask(server, "SET b 2") is None
        server.wait()
    segment = server.data / "00000001.log"
    end_bytes = len(segment.read_bytes().rstrip(b"\0"))
    assert end_bytes > acknowledged_bytes
    trace = tmp_path / "trace"
    server.under = strace(trace, calls=f"{CHANGES},lseek,sendto")
    server.start()
    assert server.post({"command": "GET b"}) == (200, {"value": "2"})
    server.kill()
    lines = trace.read_text().splitlines()
    written = rewritten(lines, segment)
    assert any(start <= acknowledged_bytes and end >= end_bytes for start, end, _ in written), "\n".join(lines)
    last_write = max(line for *_, line in written)
    synced = next(
        n for n, line in enumerate(lines) if n > last_write and f"<{segment}>) = 0" in line and "sync(" in line
    )
    answered = next(n for n, line in enumerate(lines) if "sendto" in line and '"HTTP/1.1 200' in line)
    assert last_write < synced < answered


def rewritten(lines: list[str], segment: Path) -> list[tuple[int, int, int]]:
    """Where a trace writes into a segment: from, to, in bytes, and in which line."""
    found, offset = [], 0
    for number, line in enumerate(lines):
        if f"<{segment}>" not in line:
            continue
        if seek := re.search(r"lseek\(.* (\d+), SEEK_SET\) = \d+", line):
            offset = int(seek[1])
        elif write := re.search(r" write\(.*\) = (\d+)", line):
            found.append((offset, offset + int(write[1]), number))
            offset += int(write[1])
    return found


def test_a_read_error_at_the_start_refuses_and_is_never_taken_for_the_end(server: Server, tmp_path: Path) -> None:
    """A15."""
    server.post({"command": "SET k0 v"})
    server.kill()
    segment = server.data / "00000001.log"
    before = content(server.data)
    fault = f"{READS}:error=EIO"
    server.under = strace(tmp_path / "trace", fault, only=[segment], calls=READS)
    server.launch()
    assert server.wait() == 1
    assert segment.name in server.log
    assert "Input/output error" in server.log
    assert content(server.data) == {**before, "LOCK": content(server.data)["LOCK"]}
    server.under = ()
    server.start()
    assert values(server, 1) == ["v"]


def test_a_directory_sync_that_fails_at_the_start_refuses_and_the_next_start_has_everything(
    server: Server, tmp_path: Path
) -> None:
    """B1."""
    server.post({"command": "SET k0 v"})
    server.kill()
    server.under = strace(tmp_path / "trace", "fsync:error=EIO")
    server.launch()
    assert server.wait() == 1
    assert f"{server.data}" in server.log
    assert "Input/output error" in server.log
    server.under = ()
    server.start()
    assert values(server, 1) == ["v"]


@pytest.mark.parametrize("way", [(), ("--no-door",)], ids=["door", "no door"])
def test_out_of_descriptors_the_log_goes_on_rolling_and_checkpoints_come_when_there_are_some_again(
    way: tuple[str, ...], tmp_path: Path
) -> None:
    """B6: the limit is lowered to what is open, in the middle of a life; a roll opens nothing, and nothing ends."""
    with Server(tmp_path / "data", "--segment-size", "256KiB", *way) as server:
        for number in range(3):
            assert ask(server, f"SET k{number} {number:050000}") == 200
        wait_until((server.data / "00000002.log.tmp").exists)
        limit_descriptors(server, lowest_free(server))
        for number in range(30):
            assert ask(server, f"SET k{number} {number:050000}") == 200
        assert server.is_running, server.log
        rolled = len(list(server.data.glob("*.log")))
        assert rolled > 2, "each roll gives back what the next spare takes"
        limit_descriptors(server, 1024)
        for number in range(30):
            assert ask(server, f"SET m{number} {number:050000}") == 200
        wait_until(lambda: not (server.data / "00000001.log").exists())  # a checkpoint has its process again
        server.kill()
        server.start()
        assert values(server, 30) == [f"{number:050000}" for number in range(30)]


def lowest_free(server: Server) -> int:
    """The lowest number that is no open descriptor of the server's."""
    used = {int(link.name) for link in Path(f"/proc/{server.pid}/fd").iterdir()}
    return next(number for number in range(1024) if number not in used)


def limit_descriptors(server: Server, count: int) -> None:
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (count, hard))


def test_a_file_system_that_allocates_nothing_more_ends_no_server(tmp_path: Path) -> None:
    """B3, B4, I1 to I6: a quota or a thin volume says so for ever, while the disk says that much is free."""
    books = new_books()
    with Server(tmp_path / "data", "--segment-size", "256KiB") as server:

        async def refuse() -> None:
            await trio.sleep(0.3)
            with attached(server, "fallocate:error=ENOSPC", calls="fallocate"):
                await trio.to_thread.run_sync(wait_until, lambda: "the disk is full" in server.log)
                await trio.sleep(2)
                assert server.is_running, server.log
            server.kill()

        trio.run(run_load, (server.host, server.port), books, 1, refuse)
        server.start()
        trio.run(check, (server.host, server.port), books, list(books.queues))


def test_a_directory_sync_that_fails_while_it_runs_ends_with_code_5(tmp_path: Path) -> None:
    """B1: at the roll to the next segment."""
    acknowledged = 0
    with Server(tmp_path / "data", "--segment-size", "1MiB") as server:
        with attached(server, "fsync:error=EIO", calls="fsync"):
            while ask(server, f"SET k{acknowledged} {'x' * 100_000}") == 200:
                acknowledged += 1
            assert server.wait() == LOG_FAILED
        assert str(server.data) in server.log
        assert "Input/output error" in server.log
        server.start()
        assert all(values(server, acknowledged))


def test_a_checkpoint_whose_process_is_killed_fails_and_the_next_one_does_not(server: Server, tmp_path: Path) -> None:
    """C3, C4: the log stays as it was, and goes on."""
    server.stop()
    server.under = stopping_in_a_checkpoint(tmp_path)
    server.start()
    server.post({"command": "SET k0 v"})
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{server.url}/checkpoint", timeout=60)
        wait_until((tmp_path / "mark").exists)
        child = child_of(server)
        assert child is not None
        os.kill(child, signal.SIGKILL)
        assert asked.result().status_code == 503
    wait_until(lambda: "SIGKILL" in server.log)  # a thread writes the log
    server.post({"command": "SET k1 v"})
    assert httpx.post(f"{server.url}/checkpoint", timeout=60).status_code == 200
    assert sorted(content(server.data)) == ["00000002.snapshot", "00000003.log", "LOCK", "MANIFEST"]
    server.kill()
    server.start()
    assert values(server, 2) == ["v", "v"]


def test_pings_are_answered_while_the_disk_takes_its_time(server: Server) -> None:
    """B7: the sync takes as long as strace holds it up; the event loop does not wait with it."""
    server.post({"command": "SET k0 v"})
    with ThreadPoolExecutor(1) as pool:
        with attached(server, "fdatasync:delay_enter=600000000:when=1") as trace:
            write = pool.submit(ask, server, "SET k1 v")
            wait_until(lambda: "fdatasync" in trace.read_text())
            time.sleep(SLOW_COMMIT_S)
            assert all(ask(server, "PING") == 200 for _ in range(20))
            assert not write.done()
        assert write.result() == 200
    wait_until(lambda: re.search(r"a commit took \d+\.\d s", server.log))


def crashed(data: Path) -> None:
    """Leaves a directory whose next start has everything to mend: a torn tail, a leftover, frames to write anew."""
    with Server(data) as server:
        for number in range(5):
            server.post({"command": f"SET k{number} v"})
    segment = data / "00000001.log"
    segment.write_bytes(segment.read_bytes().rstrip(b"\0")[:-3])
    (data / "MANIFEST.tmp").write_bytes(b"half a manifest")


def traced_start(data: Path, *injections: str) -> tuple[Server, Path]:
    """A server that will start under strace, and where its changes to a directory will be traced."""
    trace = data.with_suffix(".trace")
    only = [data, data / "00000001.log", data / "MANIFEST.tmp"]
    return Server(data, under=strace(trace, *injections, only=only)), trace


@pytest.mark.costly("two starts under strace for each change of a start")
def test_a_start_killed_before_any_of_its_changes_leads_to_the_same_state(tmp_path: Path) -> None:
    """B12, C1: the changes are counted in a trace; each call of each kind is the last of one start."""
    crashed(tmp_path / "crashed")
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "crashed", whole)
    server, trace = traced_start(whole)
    server.start()
    server.kill()
    made = Counter(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    assert {"write", "fdatasync", "fsync", "renameat", "unlinkat", "ftruncate"} <= set(made), made
    expected = state_of(whole)

    def kill_before(point: tuple[str, int]) -> None:
        call, number = point
        data = tmp_path / f"{call}-{number}"
        shutil.copytree(tmp_path / "crashed", data)
        killed, _ = traced_start(data, f"{call}:signal=KILL:when={number}")
        killed.launch()
        assert killed.wait() == -signal.SIGKILL
        assert state_of(data) == expected, point

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(kill_before, [(call, number + 1) for call in made for number in range(made[call])]))


@pytest.mark.parametrize("fault", ["fallocate", "ftruncate", "renameat", "renameat:2", "fsync:2", "unlinkat"])
def test_a_kill_before_a_change_of_a_roll_or_checkpoint_loses_nothing(tmp_path: Path, fault: str) -> None:
    """B11, C1, I1 to I6: segments are so small that both happen all the time."""
    call, _, number = fault.partition(":")
    books = new_books()
    with Server(tmp_path / "data", "--segment-size", "256KiB") as small:

        async def killed() -> None:
            with attached(small, f"{call}:signal=KILL:when={number or 1}", calls=call):
                assert await trio.to_thread.run_sync(small.wait) == -signal.SIGKILL

        trio.run(run_load, (small.host, small.port), books, 1, killed)
        small.start()
        trio.run(check, (small.host, small.port), books, list(books.queues))


def state_of(data: Path) -> list[tuple[Any, ...]]:
    """What a data directory holds, replayed here: quicker than another server."""
    state, log = recover(DiskDirectory(data), Limits(), wall_ms=time.time_ns() // 1_000_000)
    log.abandon()
    return list(state.dump())


def unlink(segment: Path) -> None:
    segment.unlink()


def truncate(segment: Path) -> None:
    with segment.open("r+b") as file:
        file.truncate(100)


def rename(segment: Path) -> None:
    segment.rename(segment.with_suffix(".old"))


def replace(segment: Path) -> None:
    copy = segment.with_suffix(".copy")
    shutil.copy(segment, copy)
    copy.rename(segment)


def remove_directory(segment: Path) -> None:
    shutil.rmtree(segment.parent)


@pytest.mark.parametrize("harm", [unlink, truncate, rename, replace, remove_directory])
def test_a_log_taken_away_under_the_server_ends_it_with_code_5(server: Server, harm: Callable[[Path], None]) -> None:
    """B10: what is written from then on would be gone with the next start."""
    server.post({"command": "SET k0 old"})
    segment = server.data / "00000001.log"
    harm(segment)
    assert ask(server, "SET k0 new") in (None, 503)
    assert server.wait() == LOG_FAILED
    assert segment.name in server.log or (not server.data.exists() and str(server.data) in server.log)


def move_directory(data: Path) -> None:
    data.rename(data.with_suffix(".old"))


def unlink_manifest(data: Path) -> None:
    (data / "MANIFEST").unlink()


@pytest.mark.parametrize("harm", [move_directory, unlink_manifest])
def test_the_rest_is_looked_at_now_and_then(server: Server, harm: Callable[[Path], None]) -> None:
    """B10: nothing is lost yet, but the next start would not find it."""
    server.post({"command": "SET k0 old"})
    harm(server.data)
    wait_until(lambda: ask(server, "SET k0 new") != 200)
    assert server.wait() == LOG_FAILED
    assert "MANIFEST" in server.log or str(server.data) in server.log.splitlines()[-1]


def test_a_log_taken_away_from_an_idle_server_ends_it_too(server: Server) -> None:
    """B10."""
    server.post({"command": "SET k0 v"})
    segment = server.data / "00000001.log"
    segment.unlink()
    assert server.wait() == LOG_FAILED
    assert segment.name in server.log
