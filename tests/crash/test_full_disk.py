"""B3, B4: a real disk of 16 MiB, filled up. What grows is refused; everything else goes on, and nothing is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from engine.embedded.complaints import COMPLAINT_INTERVAL_S
from tests.harness.load import check, new_books, run_load
from tests.harness.process import Server
from tests.harness.small_disk import SmallDisk
from tests.harness.waiting import wait_until

FULL = (507, "storage full")

PAUSE_S = 0.05
"""Between two looks at a server that makes room meanwhile."""

REFUSING_S = 2.5
"""Long enough for the server to ask the disk for room again, and again."""

REFUSAL_PAUSE_S = 0.01
"""Refusals come far more often than complaints all the same."""

LIVE_KEYS = 100
OVERWRITES = 7

KINDS = ("tmpfs", "ext4") if os.geteuid() == 0 and Path("/dev/loop-control").exists() else ("tmpfs",)


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path, request.param) as disk:
        yield disk


@pytest.fixture
def server(disk: SmallDisk) -> Iterator[Server]:
    with Server(disk.path / "data", under=disk.enter) as server:
        yield server


def ask(server: Server, command: str) -> tuple[int, str | int | None]:
    """Status, and the value or error."""
    status, answer = server.post({"command": command})
    return status, None if answer is None else answer.get("value", answer.get("error"))


def fill(server: Server, name: str) -> dict[str, str]:
    """Writes keys until that is refused; returns what was acknowledged."""
    written: dict[str, str] = {}
    while True:
        key, value = f"{name}{len(written)}", f"{len(written)}".ljust(50_000, "x")
        found = ask(server, f"SET {key} {value}")
        if found != (200, None):
            assert found == FULL
            return written
        written[key] = value


def assert_there(server: Server, written: dict[str, str]) -> None:
    for key, value in written.items():
        assert ask(server, f"GET {key}") == (200, value), key


def test_a_full_disk_refuses_what_grows_and_nothing_else(server: Server) -> None:
    """B3, B4"""
    began_s = time.monotonic()
    ask(server, "QPUSH jobs a b c d")
    written = fill(server, "k")
    assert len(written) > 50, "most of the disk should be for data"
    refusing_until_s = time.monotonic() + REFUSING_S
    while time.monotonic() < refusing_until_s:
        assert ask(server, "SET small v") == FULL
        assert ask(server, "QPUSH jobs e") == FULL
        time.sleep(REFUSAL_PAUSE_S)
    assert ask(server, "PING") == (200, "PONG")
    ready, answer = server.get("/readyz")
    assert (ready, answer["status"]) == (200, "degraded"), "a 503 would take away those who make room"
    assert ask(server, "QPOP jobs") == (200, "d")
    assert ask(server, "BQPOP jobs") == (200, "a")
    assert ask(server, "DELETE k0") == (200, 1)
    del written["k0"]
    assert server.get("/stats")[0] == 200
    assert_there(server, written)
    took_s = time.monotonic() - began_s
    assert 1 <= server.log.count("the disk is full") <= 1 + took_s // COMPLAINT_INTERVAL_S
    assert server.log.count("WARNING") <= 3 + took_s, "there were more refusals than that"
    server.kill()
    server.start()
    assert ask(server, "QLEN jobs") == (200, 2)
    assert ask(server, "EXISTS k0") == (200, 0)
    assert_there(server, written)


def test_deleting_makes_room_without_a_restart(server: Server) -> None:
    """B3, B4"""
    written = fill(server, "k")
    kept = {key: written.pop(key) for key in list(written)[::10]}
    for key in written:
        assert ask(server, f"DELETE {key}") == (200, 1)
    wait_until(lambda: ask(server, "SET again v") == (200, None), pause_s=PAUSE_S)
    more: dict[str, str] = {}

    def is_there() -> bool:
        more.update(fill(server, f"m{len(more)}-"))
        return len(more) > len(written) // 3

    # It comes back with a checkpoint, and one may have begun before the last key was deleted.
    wait_until(is_there, pause_s=PAUSE_S)
    assert len(more) > len(written) // 3, "the room of what was deleted should be there again"
    server.kill()
    server.start()
    assert_there(server, kept | more | {"again": "v"})
    assert ask(server, f"EXISTS {' '.join(written)}") == (200, 0)


@pytest.mark.costly("700 long values over HTTP")
def test_overwriting_a_quarter_of_the_disk_goes_on_for_ever(server: Server) -> None:
    """B4, C4: the log stays in bounds; what it takes at most is twice what lives, and two segments."""
    written: dict[str, str] = {}
    for number in range(LIVE_KEYS * OVERWRITES):
        key, value = f"k{number % LIVE_KEYS}", f"{number}".ljust(40_000, "x")
        wait_until(partial(accepts, server, key, value), pause_s=PAUSE_S)
        written[key] = value
    assert_there(server, written)
    server.kill()
    server.start()
    assert_there(server, written)


def accepts(server: Server, key: str, value: str) -> bool:
    found = ask(server, f"SET {key} {value}")
    assert found in ((200, None), FULL)
    return found[0] == 200


def test_a_queue_is_worked_off_on_a_full_disk_and_can_then_be_filled_again(server: Server) -> None:
    """B4, I6: hundreds of pops, which are logged too."""
    pushed: list[str] = []

    def push() -> int:
        values = [f"{len(pushed) + number}".ljust(16_000, "x") for number in range(3)]
        status, _ = ask(server, f"QPUSH jobs {' '.join(values)}")
        if status == 200:
            pushed.extend(values)
        return status

    while push() == 200:
        pass
    assert push() == 507
    popped = []
    while (found := ask(server, "BQPOP jobs 0"))[1] is not None:
        assert found[0] == 200
        popped.append(found[1])
        if len(popped) == len(pushed) // 2:
            server.kill()
            server.start()
    assert popped == pushed
    wait_until(lambda: push() == 200, pause_s=PAUSE_S)


def test_room_that_somebody_else_took_and_gave_back_is_used_without_a_restart(server: Server, disk: SmallDisk) -> None:
    """B3"""
    filler = disk.seen_from_here / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(64 * 1024)):
            pass
    written = fill(server, "k")
    filler.unlink()
    wait_until(lambda: ask(server, "SET again v") == (200, None), pause_s=PAUSE_S)
    assert_there(server, written)


def test_load_on_a_full_disk_and_a_kill_lose_nothing(server: Server) -> None:
    """B3, B11, I1 to I6"""
    written = fill(server, "k")
    books = new_books()

    async def end() -> None:
        await trio.sleep(2)
        assert server.is_running, server.log
        server.kill()

    trio.run(run_load, (server.host, server.port), books, 1, end)
    assert books.acknowledged
    server.start()
    trio.run(check, (server.host, server.port), books, list(books.queues))
    assert_there(server, written)
