"""The door (api/door.py, api/connection.py): order, limits, deadlines, clients that leave, defects."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from typing import NoReturn

import pytest
import trio
from trio.testing import MockClock

from api import batches, dialects
from api.access import Access
from api.front import serve_door
from api.relay import Relay
from api.request import RequestHead, read_head
from tests.harness.fake_engine import FakeEngine
from tests.harness.http import HOST, PING, Server, listen, post, serving, until


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


def _fail(*_: object, **__: object) -> NoReturn:
    raise ZeroDivisionError("a defect")


GET_LIVEZ = b"GET /livez HTTP/1.1\r\n%b\r\n" % HOST

DEFECTS = {
    "understand": (dialects, "understand"),
    "answer": (dialects, "answer"),
    "submit_nowait": (FakeEngine, "submit_nowait"),
    "batch": (batches, "parse"),
    "batch answer": (batches, "answer"),
    "submit_many_nowait": (FakeEngine, "submit_many_nowait"),
    "slow lane": (dialects, "understand_in_steps"),
    "relay": (Relay, "request"),
}


@pytest.mark.parametrize(("place", "name"), DEFECTS.values(), ids=DEFECTS.keys())
async def test_f13_a_defect_is_answered_500_and_the_connection_goes_on(
    server: Server, place: object, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F13"""
    client = await server.connect()
    requests = (post(PING), post(b"[%b]" % PING, path=b"/pipeline"), post(PING.ljust(100_000)), GET_LIVEZ)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, _fail)
        await client.send(b"".join(requests))
        answers = [await client.answer() for _ in requests]
    failed = [answer for answer in answers if answer.status != 200]
    assert failed
    assert {(answer.status, answer.body) for answer in failed} == {(500, b'{"error": "internal error"}')}
    assert caplog.text.count("ZeroDivisionError: a defect") == len(failed)
    await client.send(post(PING))
    assert (await client.answer()).status == 200


@pytest.mark.parametrize("begin", [b"", post(PING), GET_LIVEZ], ids=["first", "behind a command", "behind an errand"])
async def test_f13_a_defect_of_the_door_costs_one_connection(
    server: Server, begin: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F13"""
    client, other = await server.connect(), await server.connect()

    def fail(data: bytes, access: Access, body_bytes_max: int) -> RequestHead:
        return _fail() if b"X: bad" in data else read_head(data, access, body_bytes_max)

    with monkeypatch.context() as patch:
        patch.setattr("api.door.read_head", fail)
        await client.send(begin + post(PING, head=HOST + b"X: bad\r\n"))
        if begin == GET_LIVEZ:
            assert (await client.answer()).status == 200
        assert await client.ended()
    assert caplog.text.count("ZeroDivisionError: a defect") == 1
    await other.send(post(PING))
    assert (await other.answer()).status == 200
    await other.stream.aclose()
    await until(lambda: server.connections_open == 0)


async def test_a_client_that_leaves_while_its_bad_body_is_parsed_costs_nothing(server: Server) -> None:
    client = await server.connect()
    await client.send(post(b"[" + b"1, " * 2_000_000))
    await until(lambda: server.app.traffic()["requests_open"] == 1)
    client.reset()
    await until(lambda: server.connections_open == 0)
    await is_served(server)
