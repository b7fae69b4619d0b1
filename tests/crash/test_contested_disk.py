"""B3, B4: a real disk of which others take every byte at any moment, also what a roll has just given back."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.harness.load import check, new_books, run_load
from tests.harness.process import Server
from tests.harness.small_disk import KINDS, SmallDisk
from tests.harness.waiting import wait_until

CONTESTED_S = 3.0
"""Long enough for segments to fill, and for checkpoints to be tried."""

PIECES_BYTES = (1 << 20, 65_536, 4_096, 512)
PAUSE_S = 0.002


@contextmanager
def others_writing(path: Path) -> Iterator[None]:
    """Somebody who takes whatever is free, again and again, until the block ends; then all of it is given back."""
    end = threading.Event()
    full = threading.Event()

    def take() -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while not end.wait(PAUSE_S):
                for piece_bytes in PIECES_BYTES:
                    with suppress(OSError):
                        while not end.is_set() and os.write(descriptor, bytes(piece_bytes)):
                            pass
                full.set()
        finally:
            os.close(descriptor)
            path.unlink()

    thread = threading.Thread(target=take)
    thread.start()
    try:
        full.wait()
        yield
    finally:
        end.set()
        thread.join()


@pytest.mark.costly("a disk is filled under load")
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_goes_on_while_others_take_every_free_byte(kind: str, tmp_path: Path) -> None:
    """B3, B4, B6, I1 to I6: what is refused is answered 507, and nothing ends the server or loses anything."""
    books = new_books()
    with (
        SmallDisk(tmp_path, kind) as disk,
        Server(disk.path / "data", "--segment-size", "256KiB", under=disk.enter) as server,
    ):

        async def fill_up() -> None:
            await trio.sleep(0.5)
            with others_writing(disk.seen_from_here / "others"):
                await trio.sleep(CONTESTED_S)
                assert server.is_running, server.log
            await trio.to_thread.run_sync(is_ready)
            server.kill()

        def is_ready() -> None:
            wait_until(lambda: server.get("/readyz")[0] == 200)

        trio.run(run_load, (server.host, server.port), books, 1, fill_up)
        assert "the disk is full" in server.log
        assert "Traceback" not in server.log
        server.start()
        trio.run(check, (server.host, server.port), books, list(books.queues))
