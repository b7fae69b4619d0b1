"""New clients (api/door/acceptor.py), and what the kernel has no more of for them: descriptors, memory. B6."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
from contextlib import suppress
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from api.door.acceptor import Acceptor
from api.http.refusals import Seldom
from api.server.http import serve_door
from tests.api.door.stand import GET_LIVEZ
from tests.harness.http import PING, Client, Server, http, is_served, listen, post, serving, until


@pytest.fixture(autouse=True)
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged again and again is logged once, as in a server."""
    monkeypatch.setattr(logging.getLogger("holdfast.http"), "filters", [Seldom()])


class _Poor(socket.socket):
    """A listener of a process that may be out of descriptors."""

    poor = True
    error = errno.EMFILE

    def accept(self) -> tuple[socket.socket, object]:
        if self.poor:
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


class _PoorEpoll:
    """An epoll of a kernel that may be out of memory for it."""

    error: int | None = None

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.fileno, self.poll, self.close = self._epoll.fileno, self._epoll.poll, self._epoll.close
        self.unregister = self._epoll.unregister

    def _check(self) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))

    def register(self, fd: int, events: int) -> None:
        self._check()
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._check()
        self._epoll.modify(fd, events)


@pytest.fixture
def poor_epoll(monkeypatch: pytest.MonkeyPatch) -> type[_PoorEpoll]:
    monkeypatch.setattr("api.door.shared.select", SimpleNamespace(epoll=_PoorEpoll))  # not that of the event loop
    monkeypatch.setattr(_PoorEpoll, "error", None)
    return _PoorEpoll


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
    assert lines == ["cannot accept connections: [Errno 24] Too many open files"]


@pytest.mark.parametrize("error", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get)
async def test_b6_whatever_the_kernel_lacks_it_accepts_again_later(
    patience: None, still_clock: MockClock, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    """B6"""
    listener = listen(_Poor)
    assert isinstance(listener, _Poor)
    listener.error = error
    async with serving(serve_door, listeners=[listener]) as server:
        client = await server.connect()
        for _ in range(20):
            still_clock.jump(0.25)
            await trio.testing.wait_all_tasks_blocked(0.001)
        listener.poor = False
        still_clock.jump(0.25)
        await client.send(post(PING))
        assert (await client.answer()).status == 200
    assert len(caplog.records) == 1
    assert os.strerror(error) in caplog.text


async def test_h1_who_knocked_before_the_shutdown_and_was_not_let_in_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """H1: a turn that takes long lets others go on between the knock and the door, and one of them may shut down."""
    async with serving(serve_door) as server:
        served = await server.connect()
        await served.send(post(PING))
        assert (await served.answer()).status == 200
        accept = Acceptor.accept
        knocked = trio.Event()

        def close_first(acceptor: Acceptor, fd: int) -> None:
            acceptor.close()
            accept(acceptor, fd)
            knocked.set()

        monkeypatch.setattr(Acceptor, "accept", close_first)
        with socket.socket() as late:
            late.setblocking(False)
            late.connect_ex(server.address)
            await knocked.wait()
        await served.send(post(PING))
        assert (await served.answer()).status == 200


@pytest.mark.parametrize("error", [errno.EPROTO, errno.ECONNABORTED, errno.EPERM], ids=errno.errorcode.get)
async def test_an_error_of_one_clients_connection_does_not_keep_the_next_waiting(
    patience: None, still_clock: MockClock, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    """The clock stands still: nobody waits for another try."""

    class Unlucky(_Poor):
        def accept(self) -> tuple[socket.socket, object]:
            self.poor = not self.poor
            return super().accept()

    listener = listen(Unlucky)
    assert isinstance(listener, _Poor)
    listener.error, listener.poor = error, False
    async with serving(serve_door, listeners=[listener]) as server:
        for _ in range(3):
            await is_served(server)
    assert caplog.text == ""


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.ENOMEM], ids=errno.errorcode.get)
async def test_b6_a_kernel_that_cannot_watch_a_socket_costs_that_connection(
    poor_epoll: type[_PoorEpoll],
    patience: None,
    still_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
) -> None:
    """B6: a new client, one that is served, and the listening socket; others go on, and one line says it."""
    async with serving(serve_door, listeners=[listen(send_buffer_bytes=4096)]) as server:
        other, victim = await server.connect(), await server.connect(receive_buffer_bytes=4096)
        for client in (other, victim):
            await client.send(post(PING))
            assert (await client.answer()).status == 200
        monkeypatch.setattr(poor_epoll, "error", error)
        with contextlib.suppress(trio.BrokenResourceError):
            await victim.send(post(PING) * 3000)  # it does not read, so it has to be watched otherwise
        await until(lambda: server.connections_open == 1)
        assert await (await server.connect()).ended()
        for _ in range(20):
            still_clock.jump(0.25)
            await trio.testing.wait_all_tasks_blocked(0.001)
        await other.send(post(PING))
        assert (await other.answer()).status == 200
        late = await server.connect()
        monkeypatch.setattr(poor_epoll, "error", None)
        still_clock.jump(0.25)
        await late.send(post(PING))
        assert (await late.answer()).status == 200
    kinds = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert kinds == ["a connection was closed, because the kernel cannot watch it", "cannot accept connections"]


async def test_b6_a_kernel_without_memory_for_the_event_loop_itself_ends_nothing(
    patience: None, still_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B6: the door looks again a moment later."""
    wait = trio.lowlevel.wait_readable
    failures: list[int] = []

    async def fail(fd: int) -> None:
        if len(failures) < 3:
            failures.append(fd)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        await wait(fd)

    monkeypatch.setattr("api.door.door.trio.lowlevel.wait_readable", fail)
    async with serving(serve_door) as server:
        client = await server.connect()
        await client.send(post(PING))
        for _ in range(4):
            await trio.testing.wait_all_tasks_blocked(0.001)
            still_clock.jump(0.25)
        assert (await client.answer()).status == 200
    assert len(failures) == 3
    assert "cannot wait for connections, trying again: [Errno 12]" in caplog.text
