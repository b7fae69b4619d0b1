"""What clients send before it can be started: whether they are seen to leave behind it, and how much of it is held."""

from __future__ import annotations

import contextlib
import dataclasses
import socket

import pytest
import trio
import trio.testing

from api.door.held import AheadBytes
from api.http.access import Access
from api.http.sockets import READ_AHEAD_BYTES_MAX
from api.server.http import serve_door
from engine.commands.queues import BQPop, QPush
from engine.replies import Ok
from tests.api.door.stand import MIB, line
from tests.harness.http import HOST, PARK, PING, SETTINGS, Client, Server, is_served, listen, post, serving, until

SET = line("SET k v")
MUCH = SET * (4 * READ_AHEAD_BYTES_MAX // len(SET))
"""More than is read ahead, together with what the kernel holds."""

SOME = SET * (READ_AHEAD_BYTES_MAX // 2 // len(SET))


async def parked(server: Server, behind: bytes) -> Client:
    """A client that waits for a value, and has sent more."""
    client = await server.connect()
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MIB)
    with contextlib.suppress(trio.BrokenResourceError):  # closed already
        await client.send(post(PARK) + behind)
    return client


@pytest.mark.parametrize("behind", [b"", SOME, MUCH], ids=["nothing", "some", "much"])
@pytest.mark.parametrize("way", ["close", "reset", "half"])
async def test_e2_a_client_that_leaves_is_seen_behind_whatever_it_has_pipelined(
    server: Server, behind: bytes, way: str
) -> None:
    """E2, E3: the end of its connection waited behind the bytes, with its kernel, and it was given a value. A client
    that ends its half of the connection has left, too."""
    client = await parked(server, behind)
    if way == "close":
        await client.stream.aclose()
    elif way == "reset":
        client.reset()
    else:
        with contextlib.suppress(trio.BrokenResourceError):
            await client.stream.send_eof()
    await until(lambda: server.connections_open == 0)
    assert server.engine.statistics().waiters == 0
    assert set(server.engine.commands) <= {BQPop(b"q", None)}


async def test_e3_a_client_that_stays_and_sends_more_than_is_read_ahead_is_closed(server: Server) -> None:
    """E2, E3: its pop is withdrawn, so a value pushed then is there for others."""
    client = await parked(server, MUCH)
    await until(lambda: server.connections_open == 0)
    assert server.engine.withdrawn == [b"q"]
    assert server.engine.commands == [BQPop(b"q", None)]
    with contextlib.suppress(trio.BrokenResourceError):
        assert await client.ended()


async def test_e3_what_is_read_ahead_is_run_when_the_pop_is_answered(server: Server) -> None:
    """E3, F10: all of it, in order, also when it came in pieces."""
    client = await parked(server, b"")
    await until(lambda: server.engine.statistics().waiters == 1)
    count = READ_AHEAD_BYTES_MAX // len(SET)
    for at in range(0, count, 100):
        await client.send(SET * min(100, count - at))
        await trio.testing.wait_all_tasks_blocked(0.001)
    server.engine.submit_nowait(QPush(b"q", (b"a",)), lambda _: None)
    assert (await client.answer()).json == {"value": "a"}
    assert [(await client.answer()).status for _ in range(count)] == [200] * count
    await client.send(post(PING))
    assert (await client.answer()).json == {"value": "PONG"}


async def test_f10_much_behind_a_pop_that_finds_a_value_is_no_reason_to_close(server: Server) -> None:
    """F10: nothing is closed over what only takes its time."""
    assert server.engine._do(QPush(b"q", (b"a",))) == Ok(1)
    client = await parked(server, MUCH)
    assert (await client.answer()).json == {"value": "a"}
    for _ in range(len(MUCH) // len(SET)):
        assert (await client.answer()).status == 200


KINDS = {
    "behind a pop": post(PARK) + SOME,
    "a head": b"POST / HTTP/1.1\r\n%bX: " % HOST + b"x" * 7_000,
    "a body": post(b" " * 15_000)[:-1],
    "a body in chunks": b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n3a98\r\n" % HOST + b" " * 14_000,
}


@pytest.mark.parametrize("data", KINDS.values(), ids=KINDS.keys())
async def test_f6_what_came_and_is_not_started_has_a_bound_over_all_connections(
    patience: None, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """F6: 10,000 clients that pipelined behind a pop took 510 MiB. Who holds little
    stays."""
    monkeypatch.setattr(AheadBytes, "bytes_max", 60_000)
    async with serving(serve_door, listeners=[listen(send_buffer_bytes=4096)]) as server:
        for _ in range(2):
            small = await server.connect()
            await small.send(post(PING)[:-1])
            for _ in range(12):
                client = await server.connect(receive_buffer_bytes=4096)
                with trio.move_on_after(0.02), contextlib.suppress(trio.BrokenResourceError):
                    await client.send(data)
            await until(lambda: 1 < server.connections_open < 12)
            await small.send(post(PING)[-1:])
            assert (await small.answer()).json == {"value": "PONG"}
            server.hang_up()
            await until(lambda: server.connections_open == 0)
        await is_served(server)


@pytest.mark.costly("many clients that send all they may")
async def test_f6_with_a_wrong_token_no_more_is_held(patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """F6"""
    monkeypatch.setattr(AheadBytes, "bytes_max", 60_000)
    settings = dataclasses.replace(SETTINGS, access=Access(token="right"))  # of a test
    async with serving(serve_door, settings, listeners=[listen(send_buffer_bytes=4096)]) as server:
        for _ in range(12):
            client = await server.connect(receive_buffer_bytes=4096)
            with trio.move_on_after(0.02), contextlib.suppress(trio.BrokenResourceError):
                await client.send(post(PING, head=HOST + b"Authorization: Bearer wrong\r\n") * 3_000)
        await until(lambda: 0 < server.connections_open < 12)
