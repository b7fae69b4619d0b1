"""New clients (api/door/acceptor.py): want of descriptors, B6."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from api.server.http import serve_door
from tests.api.door.stand import GET_LIVEZ
from tests.harness.http import PING, Client, Server, http, is_served, listen, post, serving, until


class _Poor(socket.socket):
    """A listener of a process that may be out of descriptors."""

    poor = True

    def accept(self) -> tuple[socket.socket, object]:
        if self.poor:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.fixture
async def crowded(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    """16 clients, who have all descriptors that there are for clients; two guests may be there beside them."""
    monkeypatch.setattr("api.door.acceptor.resource.getrlimit", lambda _: (32, 32))
    clients = [await server.connect() for _ in range(16)]
    await until(lambda: server.connections_open == 16)
    return clients


async def test_b6_clients_beyond_the_descriptors_are_told_503_and_the_others_are_served(
    server: Server, crowded: list[Client], caplog: pytest.LogCaptureFixture
) -> None:
    """B6: the last descriptors are for the log, and for those who ask whether the server is alive."""
    for _ in range(3):
        (answer,) = await server.talk(post(PING))
        assert (answer.status, answer.json["error"]) == (503, "unavailable")
        assert answer.headers[b"connection"] == b"close"
        assert answer.headers[b"retry-after"] == b"1"
    assert server.connections_open == 16
    for client in crowded:
        await client.send(post(PING))
        assert (await client.answer()).json == {"value": "PONG"}
    assert [record.getMessage() for record in caplog.records] == [
        "too many connections: the descriptors have run out, new clients are answered 503"
    ]
    crowded[0].stream.socket.close()
    await until(lambda: server.connections_open == 15)
    await is_served(server)


async def test_b6_probes_of_new_clients_are_answered_when_the_descriptors_have_run_out(
    server: Server, crowded: list[Client]
) -> None:
    """B6: also while others come and say nothing."""
    silent = [await server.connect() for _ in range(20)]
    for path, status in ((b"/livez", 200), (b"/readyz", 200), (b"/stats", 503)):
        (answer,) = await server.talk(http(b"GET " + path))
        assert answer.status == status
    (answer,) = await server.talk(http(b"GET /livez", host=b"Host: evil.example\r\n"))
    assert answer.status == 403
    client = await server.connect()
    await client.send(http(b"HEAD /readyz"))
    assert (await client.answer(to_head=True)).status == 200
    assert await client.ended()
    for client in silent:
        with suppress(trio.BrokenResourceError):
            assert await client.ended()
    assert server.connections_open == 16
    await crowded[0].send(GET_LIVEZ)
    assert (await crowded[0].answer()).status == 200


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
