"""New clients (api/door/acceptor.py): want of descriptors, B6."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from api.server.http import serve_door
from tests.api.door.stand import GET_LIVEZ
from tests.harness.http import PING, Server, listen, post, serving, until


class _Poor(socket.socket):
    """A listener of a process that may be out of descriptors."""

    poor = True

    def accept(self) -> tuple[socket.socket, object]:
        if self.poor:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_b6_clients_do_not_get_the_last_descriptors(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """B6: or the others are not served, and a probe finds the server dead."""
    monkeypatch.setattr("api.door.acceptor.resource.getrlimit", lambda _: (16, 16))
    clients = [await server.connect() for _ in range(12)]
    await until(lambda: server.connections_open == 8)
    await clients[0].send(GET_LIVEZ)
    assert (await clients[0].answer()).status == 200
    assert server.connections_open == 8
    for client in clients[:4]:
        client.stream.socket.close()
    for client in clients[4:]:
        await client.send(post(PING))
        assert (await client.answer()).json == {"value": "PONG"}


async def test_b6_out_of_descriptors_it_serves_the_others_and_accepts_again_later(
    patience: None, still_clock: MockClock, caplog: pytest.LogCaptureFixture
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
                still_clock.jump(1.0)
                await trio.testing.wait_all_tasks_blocked(0.001)
            await client.send(post(PING))
            assert (await client.answer()).status == 200
            first.poor = second.poor = False
            still_clock.jump(0.25)
            await waiting[0].send(post(PING))
            assert (await waiting[0].answer()).status == 200
            await other.send_all(post(PING))
            assert await other.receive_some()
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["cannot accept connections: [Errno 24] Too many open files"] * 2
