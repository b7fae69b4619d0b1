"""The door (api/door/door.py, api/door/connection.py): order, defects, what is left behind.

Clients that wait, leave, or are slow are in tests/api/door/test_clients.py, the way to the application in
tests/api/door/test_relay.py; what is promised whichever way clients are served in tests/api/app/test_http_stack.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import NoReturn

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from api.dialects import answers, batches, bodies
from api.door.connection import Connection
from api.door.exchange import Exchange
from api.door.outbox import Outbox
from api.door.relay import Relay
from api.door.request import Chunks, IncomingBody, RequestHead, read_head
from api.http.access import Access
from api.server.http import serve_door
from engine.calls import Batch, Call
from engine.limits import Limits
from tests.harness.fake_engine import FakeEngine
from tests.harness.http import HOST, PING, SETTINGS, Server, chunked, http, is_served, listen, post, serving, until
from tests.harness.world import World


@pytest.fixture
async def server(nursery: trio.Nursery, patience: None) -> AsyncIterator[Server]:
    server = Server(nursery, serve_door)
    yield server
    server.hang_up()


# Order: F10


def _mixed(number: int, lot: random.Random) -> tuple[bytes, int, object]:
    """A request, and the status and body of its answer; some are answered at once, some by a task."""
    key = b"k%d" % number
    return lot.choice(
        [
            (post(b"{"), 400, ...),
            (post(b'{"command": "BREW %b"}' % key), 400, ...),
            (post(PING), 200, {"value": "PONG"}),
            (post(b'{"command": "SET %b v"}' % key), 200, None),
            (post(b'{"command": "GET", "key": "%b"}' % key), 404, ...),
            (post(b'{"command": "BQPOP %b 0"}' % key), 200, {"value": None}),
            (post(b'{"command": "EXISTS %b"}' % key), 200, {"value": 0}),
            (post(b'[{"command": "QLEN %b"}]' % key, path=b"/pipeline"), 200, [{"value": 0}]),
            (post(b'[{"command": "DELETE %b"}]' % key, path=b"/multi"), 404, ...),
            (post(PING.ljust(70_000)), 200, {"value": "PONG"}),
            (chunked(b"13\r\n%b\r\n0\r\n\r\n" % PING), 200, {"value": "PONG"}),
            (http(b"GET /livez"), 200, {"status": "alive"}),
            (http(b"GET /" + key), 404, {"error": "not found"}),
            (http(b"GET /", host=b"Host: evil.example\r\n"), 403, ...),
            (post(PING, head=b"Host: evil.example\r\n"), 403, ...),
        ]
    )


@pytest.mark.parametrize("seed", range(4))
async def test_f10_a_hundred_pipelined_requests_of_all_kinds_are_answered_in_order(
    nursery: trio.Nursery, seed: int
) -> None:
    """F10"""
    lot = random.Random(seed)
    world = World(nursery, commit_s=0.005)
    await world.start()
    requests = [_mixed(number, lot) for number in range(100)]
    async with serving(serve_door, real=world.engine) as server:
        client = await server.connect()
        await client.send(b"".join(data for data, _, _ in requests))
        for _, status, body in requests:
            answer = await client.answer()
            assert (answer.status, ... if body is ... else (answer.body and answer.json) or None) == (status, body)
        await client.send(post(PING, head=HOST + b"Connection: close\r\n"))
        assert [answer.status for answer in await client.read_to_end()] == [200]
    await world.stop()


async def test_f10_more_than_may_be_on_their_way_at_once_are_answered_in_order(server: Server) -> None:
    """F10: 2,000 in one piece: some are in work, some wait with us, the rest in the kernel."""
    client = await server.connect()
    await client.send(b"".join(post(b'{"command": "SET k%d %d"}' % (n, n)) for n in range(1000)))
    await client.send(b"".join(post(b'{"command": "GET k%d"}' % n) for n in range(1000)))
    assert [(await client.answer()).body for _ in range(1000)] == [b""] * 1000
    assert [(await client.answer()).json for _ in range(1000)] == [{"value": str(n)} for n in range(1000)]


# Defects and want of descriptors: B6, F13


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


def _fail(*_: object, **__: object) -> NoReturn:
    raise ZeroDivisionError("a defect")


GET_LIVEZ = http(b"GET /livez")

DEFECTS = {
    "understand": (bodies, "understand"),
    "answer": (answers, "answer"),
    "submit_nowait": (FakeEngine, "submit_nowait"),
    "batch": (batches, "parse"),
    "batch answer": (batches, "answer"),
    "submit_many_nowait": (FakeEngine, "submit_many_nowait"),
    "slow lane": (bodies, "understand_in_steps"),
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
        patch.setattr("api.door.shared.read_head", fail)
        await client.send(begin + post(PING, head=HOST + b"X: bad\r\n"))
        if begin == GET_LIVEZ:
            assert (await client.answer()).status == 200
        assert await client.ended()
    assert caplog.text.count("ZeroDivisionError: a defect") == 1
    await other.send(post(PING))
    assert (await other.answer()).status == 200
    await other.stream.aclose()
    await until(lambda: server.connections_open == 0)


async def test_a_defect_on_the_way_of_a_head_request_has_no_body(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connect()
    with monkeypatch.context() as patch:
        patch.setattr(Relay, "request", _fail)
        await client.send(http(b"HEAD /livez"))
        assert (await client.answer(to_head=True)).status == 500
    await client.send(post(PING))
    assert (await client.answer()).json == {"value": "PONG"}


async def test_a_client_that_leaves_while_its_bad_body_is_parsed_costs_nothing(server: Server) -> None:
    client = await server.connect()
    await client.send(post(b"[" + b"1, " * 2_000_000))
    await until(lambda: server.app.traffic()["requests_open"] == 1)
    client.reset()
    await until(lambda: server.connections_open == 0)
    await is_served(server)


# What is left behind


_BUDGET = 1_000_000
_LARGE = PING.ljust(300_000)

ENDS = {
    "answered": (post(_LARGE), 200),
    "answered to chunks": (chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LARGE), _LARGE)), 200),
    "bad JSON": (post(b"{" + _LARGE), 400),
    "relayed": (post(_LARGE, path=b"/nothing"), 404),
    "batch": (post(b"[%b]" % b", ".join([PING] * 200), path=b"/pipeline"), 200),
    "bad batch": (post(b"[%b" % b", ".join([PING] * 20_000), path=b"/multi"), 413),
    "bad chunk": (chunked(b"%x\r\n%b\r\n??" % (len(_LARGE), _LARGE)), 400),
    "too large": (chunked(b"%x\r\n%b" % (700_000, b"x" * 600_001)), 413),
    "no room": (post(b" " * 600_000)[:-1], None),
    "left": (post(_LARGE)[:-1], None),
    "left while it is parsed": (post(b"[" + b"1, " * 190_000), None),
}


@pytest.mark.parametrize(("data", "status"), ENDS.values(), ids=ENDS.keys())
async def test_f6_the_share_of_a_body_is_given_back_however_it_ends(
    patience: None, data: bytes, status: int | None
) -> None:
    """F6"""
    settings = dataclasses.replace(SETTINGS, limits=Limits(bodies_bytes_max=_BUDGET, body_bytes_max=600_000))
    async with serving(serve_door, settings) as server:
        budget = server.app.service.budget
        client = await server.connect()
        await client.send(data)
        if status is None:
            await until(lambda: budget.left < _BUDGET)
            client.reset()
        else:
            assert (await client.answer()).status == status
        await until(lambda: budget.left == _BUDGET)


async def test_f6_bodies_share_one_budget_and_commands_need_none_of_it(patience: None) -> None:
    """F6"""
    settings = dataclasses.replace(SETTINGS, limits=Limits(bodies_bytes_max=_BUDGET, body_bytes_max=600_000))
    async with serving(serve_door, settings) as server:
        first, second = await server.connect(), await server.connect()
        await first.send(post(b" " * 600_000)[:-1])
        await until(lambda: server.app.service.budget.left == _BUDGET - 599_999)
        await second.send(post(b" " * 600_000)[:-1])
        (answer,) = await second.read_to_end()
        assert (answer.status, answer.json["detail"]) == (503, "too many request bodies at once")
        assert answer.headers[b"retry-after"] == b"1"
        await is_served(server)


async def test_f6_a_body_that_comes_in_one_packet_has_its_share_while_it_waits_for_the_parser(patience: None) -> None:
    """F6"""
    settings = dataclasses.replace(SETTINGS, limits=Limits(bodies_bytes_max=50_000))
    async with serving(serve_door, settings) as server:
        client = await server.connect()
        await client.send(post(b"[" + b"1, " * 19_000))
        assert (await client.answer()).status == 503


_PIECES = [
    *(post(PING), PING, GET_LIVEZ, chunked(b"3\r\nabc\r\n0\r\n\r\n"), b"\r\n\r\n", b"\r\n", b"\n", b"{", b"POST /"),
    *(
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"*1\r\n$4\r\nPING\r\n",
        b"\x00" * 40,
        b"GET / HTTP/1.1\r\n",
        b"Host: localhost\r\n",
    ),
    *(b"Content-Length: 10\r\n", b"Transfer-Encoding: chunked\r\n", b"x" * 3000, b"Connection: close\r\n", b"\xff\xfe"),
]


@pytest.mark.parametrize("seed", range(5))
async def test_f11_whatever_clients_send_the_door_goes_on_and_nothing_is_left(
    server: Server, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """F11: garbage, TLS, RESP, halves of requests, in pieces; some clients stay for the answer, some do not."""
    lot = random.Random(seed)
    budget_bytes = server.app.service.budget.left
    for _ in range(40):
        client = await server.connect()
        with contextlib.suppress(trio.BrokenResourceError):
            for _ in range(lot.randrange(1, 4)):
                await client.send(b"".join(lot.choices(_PIECES, k=lot.randrange(1, 8))))
                if lot.random() < 0.5:
                    await trio.testing.wait_all_tasks_blocked()
        if lot.random() < 0.5:
            client.reset()
        else:
            await client.stream.aclose()
    await until(lambda: server.app.traffic() == {"connections": 0, "requests_open": 0})
    assert server.app.service.budget.left == budget_bytes
    assert caplog.text == ""
    await is_served(server)


async def test_nothing_is_left_of_connections_not_even_for_the_collector(
    nursery: trio.Nursery, patience: None, still_clock: MockClock
) -> None:
    """A cycle of references would be garbage that only the collector frees, and that makes it run."""
    kinds = (Connection, Exchange, Outbox, Call, Batch, IncomingBody, Chunks)
    world = World(nursery)
    await world.start()
    gc.collect()
    gc.disable()
    try:
        async with serving(serve_door, real=world.engine) as server:
            for body in (b'{"command": "QPUSH q a b c d"}', b'{"command": "QPOP q"}', b'{"command": "BQPOP q"}', b"{"):
                (answer,) = await server.talk(post(body, version=b"1.0"))
                assert answer.status in (200, 400)
            await server.talk(post(b'[{"command": "QPOP q"}]', path=b"/pipeline", version=b"1.0"))
            await server.talk(post(b'[{"command": "QPOP q"}]', path=b"/multi", version=b"1.0"))
            await server.talk(post(PING.ljust(100_000), version=b"1.0"))
            await server.talk(chunked(b"13\r\n%b\r\n0\r\n\r\n" % PING, b"Connection: close\r\n"))
            await server.talk(b"GARBAGE\r\n\r\n")
            parked, served, half = [await server.connect() for _ in range(3)]
            await parked.send(post(b'{"command": "BQPOP p"}'))
            await served.send(post(b'{"command": "BQPOP s"}'))
            await half.send(chunked(b"13\r\n"))
            await until(lambda: world.engine.statistics().waiters == 2)
            await server.talk(post(b'{"command": "QPUSH s a"}', version=b"1.0"))
            assert (await served.answer()).json == {"value": "a"}
            server.hang_up()
            await until(lambda: server.connections_open == 0)
            await is_served(server)  # the door remembers the last connection that had something to say
            await world.do("SET k v")  # the engine its last group
            left = Counter(type(one) for one in gc.get_objects() if isinstance(one, kinds))
            assert left == {Connection: 1, Outbox: 1, Call: 1}
    finally:
        gc.enable()
        await world.kill()
