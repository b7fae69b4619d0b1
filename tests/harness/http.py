"""HTTP over real sockets: a server in this process, by the door or by Hypercorn, and clients that speak raw bytes."""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
import trio.testing

from api.app.application import HttpSettings, create_app
from api.http.access import Access
from api.http.sockets import tune
from engine.embedded.engine import Engine
from engine.limits import Limits
from tests.harness.fake_engine import FakeEngine

SETTINGS = HttpSettings(Limits(), Access())

Serve = Callable[..., Awaitable[None]]

HOST = b"Host: localhost\r\n"
PING = b'{"command": "PING"}'
PARK = b'{"command": "BQPOP q"}'
SOON_S = 60.0
"""Longest wait for what comes within milliseconds; a machine that is busy needs some."""


def post(body: bytes, *, head: bytes = HOST, version: bytes = b"1.1", path: bytes = b"/") -> bytes:
    return b"POST %b HTTP/%b\r\n%bContent-Length: %d\r\n\r\n%b" % (path, version, head, len(body), body)


def listen(kind: type[socket.socket] = socket.socket, *, send_buffer_bytes: int | None = None) -> socket.socket:
    """Makes a listening socket as the server has them.

    Args:
        kind: class of the socket.
        send_buffer_bytes: what the kernel keeps for each client at most; None leaves it to the kernel.
    """
    listener = kind(socket.AF_INET, socket.SOCK_STREAM)
    tune(listener)
    if send_buffer_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    return listener


class Server:
    """A server in the test's nursery.

    Args:
        nursery: of the test.
        serve: one of the two ways.
        settings: of the application.
        real: the engine to put behind it instead of the fake one.
        listeners: to serve; one of its own by default.
        config: further arguments for `serve`.

    Attributes:
        engine: the fake.
        app: the application.
        stopped: set when it has stopped serving.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        serve: Serve,
        settings: HttpSettings = SETTINGS,
        *,
        real: Engine | None = None,
        listeners: Sequence[socket.socket] = (),
        **config: float,
    ) -> None:
        self.engine = FakeEngine()
        self._real = real
        self.stopped = trio.Event()
        self._clients: list[Client] = []
        self._stop = trio.Event()
        listeners = listeners or [listen()]
        self.address = listeners[0].getsockname()
        self.app = create_app(real or self.engine, settings)
        self._serve = partial(serve, self.app, listeners, self._stop.wait, **config)
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        await self._serve()
        self.stopped.set()

    @property
    def connections_open(self) -> int:
        return self.app.traffic()["connections"]

    def stop(self) -> None:
        (self._real or self.engine).shut_down()
        self._stop.set()

    async def connect(self, *, receive_buffer_bytes: int | None = None) -> Client:
        """Connects; a client with a small buffer has to read before the server can send more."""
        connection = trio.socket.socket()
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await connection.connect(self.address)
        client = Client(trio.SocketStream(connection))
        self._clients.append(client)
        return client

    def hang_up(self) -> None:
        for client in self._clients:
            client.stream.socket.close()

    async def talk(self, data: bytes) -> list[Answer]:
        """Sends bytes on a connection of its own, and reads to its end."""
        client = await self.connect()
        await client.send(data)
        return await client.read_to_end()


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A connection that reads answers."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def answer(self, *, to_head: bool = False) -> Answer:
        with trio.fail_after(SOON_S):
            while b"\r\n\r\n" not in self._buffer:
                await self._more()
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            line, *fields = head.split(b"\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (f.partition(b":") for f in fields)}
            length = 0 if to_head else int(headers.get(b"content-length", b"0"))
            while len(self._buffer) < length:
                await self._more()
            body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(int(line.split(b" ")[1]), headers, body)

    async def read_to_end(self) -> list[Answer]:
        answers = []
        while not await self.ended():
            answers.append(await self.answer())
        return answers

    async def ended(self) -> bool:
        """Waits for bytes or the end; a reset raises."""
        with trio.fail_after(SOON_S):
            if self._buffer:
                return False
            self._buffer = await self.stream.receive_some()
        return not self._buffer

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        assert data, "the server closed amid an answer"
        self._buffer += data

    def reset(self) -> None:
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


def http(line: bytes, *fields: bytes, host: bytes = HOST) -> bytes:
    return b"%b HTTP/1.1\r\n%b%b\r\n" % (line, host, b"".join(field + b"\r\n" for field in fields))


def chunked(body: bytes, more: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\n%b%bTransfer-Encoding: chunked\r\n\r\n%b" % (HOST, more, body)


@asynccontextmanager
async def serving(
    serve: Serve,
    settings: HttpSettings = SETTINGS,
    *,
    real: Engine | None = None,
    listeners: Sequence[socket.socket] = (),
    **config: float,
) -> AsyncIterator[Server]:
    """A server as long as the context; arguments as for `Server`."""
    async with trio.open_nursery() as nursery:
        server = Server(nursery, serve, settings, real=real, listeners=listeners, **config)
        try:
            yield server
        finally:
            server.hang_up()
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what the kernel or a thread does in its own time, under any clock."""
    ends_s = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < ends_s, "it did not come to be"
        await trio.testing.wait_all_tasks_blocked(0.001)


async def is_served(server: Server) -> None:
    """Checks that the server is in order: a new client is answered."""
    client = await server.connect()
    await client.send(post(PING))
    assert (await client.answer()).json == {"value": "PONG"}
