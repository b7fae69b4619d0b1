"""The door (api/door.py, api/connection.py): order, limits, deadlines, clients that leave, defects."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from api.front import serve_door
from tests.harness.http import PING, Server, listen, post, serving

PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
async def patience(nursery: trio.Nursery) -> AsyncIterator[None]:
    """Ends a test that waits for ever: under virtual time nothing else would."""
    over = trio.Event()
    timer = threading.Timer(PATIENCE_S, trio.lowlevel.current_trio_token().run_sync_soon, [over.set])

    async def complain() -> None:
        await over.wait()
        raise AssertionError("the test waits for ever")

    nursery.start_soon(complain)
    timer.start()
    yield
    timer.cancel()
    nursery.cancel_scope.cancel()


@pytest.fixture
async def server(nursery: trio.Nursery, patience: None) -> AsyncIterator[Server]:
    server = Server(nursery, serve_door)
    yield server
    server.hang_up()


async def is_served(server: Server) -> None:
    """Checks that the door is in order: a new client is answered."""
    client = await server.connect()
    await client.send(post(PING))
    assert (await client.answer()).json == {"value": "PONG"}


# Defects and want of descriptors: B6, F13


class _Poor(socket.socket):
    """A listener of a process that may be out of descriptors."""

    poor = True

    def accept(self) -> tuple[socket.socket, object]:
        if self.poor:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_b6_out_of_descriptors_it_serves_the_others_and_accepts_again_later(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """B6: also when two listeners have clients waiting."""
    first, second = listen(_Poor), listen(_Poor)
    assert isinstance(first, _Poor)
    assert isinstance(second, _Poor)
    first.poor = False
    async with serving(serve_door, listeners=[first, second]) as server:
        client = await server.connect()
        await client.send(post(PING))
        assert (await client.answer()).status == 200
        first.poor = True
        waiting = [await server.connect()]
        async with await trio.open_tcp_stream(*second.getsockname()) as other:
            for _ in range(50):
                mock_clock.jump(1.0)
                await trio.testing.wait_all_tasks_blocked(0.001)
            await client.send(post(PING))
            assert (await client.answer()).status == 200
            first.poor = second.poor = False
            mock_clock.jump(0.25)
            await waiting[0].send(post(PING))
            assert (await waiting[0].answer()).status == 200
            await other.send_all(post(PING))
            assert await other.receive_some()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["cannot accept connections: [Errno 24] Too many open files"] * 2
