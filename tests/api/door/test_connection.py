"""One client (api/door/connection.py): when its requests are started, how long it may take, and how it ends."""

from __future__ import annotations

import gc
import socket
from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from api.door.connection import Connection
from api.door.exchange import Exchange
from api.door.outbox import Outbox
from api.door.request import IncomingBody, RequestHead, read_head
from api.http.chunks import Chunks
from api.http.judge import Judge
from api.server.http import serve_door
from engine.calls import Batch, Call
from tests.api.door.stand import COMMIT_S, GET_STATS, MIB, Stand, defect, line
from tests.harness.http import HOST, PING, Server, chunked, is_served, post, serving, until
from tests.harness.world import World

# What is started: E3, E4


async def test_e4_a_client_that_leaves_in_the_same_turn_as_the_push_gets_nothing(stand: Stand) -> None:
    """E4: whichever of the two the kernel reports first."""
    for push_first in (False, True):
        waiter, pusher = await stand.connect(), await stand.connect()
        await waiter.send(line("BQPOP q"))
        await until(lambda: stand.world.engine.statistics().waiters == 1)
        # No await in between: the door hears of both at once.
        with socket.fromfd(pusher.stream.socket.fileno(), socket.AF_INET, socket.SOCK_STREAM) as plain:
            if push_first:
                plain.send(line("QPUSH q a"))
            waiter.reset()
            if not push_first:
                plain.send(line("QPUSH q a"))
        await stand.values_are(b"a")
        await stand.pass_time(COMMIT_S)
        assert (await pusher.answer()).status == 200
        await stand.run("DELETE q")


async def test_e3_nothing_is_started_behind_a_parked_pop_before_its_turn(stand: Stand) -> None:
    """E3"""
    client = await stand.connect()
    await client.send(line("BQPOP q") + line("SET k v"))
    await until(lambda: stand.world.engine.statistics().waiters == 1)
    await stand.pass_time(COMMIT_S * 2)
    assert stand.value("k") is None
    await stand.run("QPUSH q a")
    assert (await client.answer()).json == {"value": "a"}
    await stand.pass_time(COMMIT_S * 2)
    assert (await client.answer()).status == 200
    assert stand.value("k") == b"v"


async def test_a_pop_that_finds_a_value_or_does_not_wait_holds_nothing_up_for_long(stand: Stand) -> None:
    await stand.run("QPUSH q a")
    client = await stand.connect()
    await client.send(line("BQPOP q") + line("BQPOP q 0") + line("BQPOP q 50") + line("PING"))
    for expected in ("a", None):
        await stand.pass_time(COMMIT_S * 2)
        assert (await client.answer()).json == {"value": expected}
    await stand.pass_time(40)
    assert stand.world.engine.statistics().waiters == 1
    await stand.pass_time(12)
    assert (await client.answer()).json == {"value": None}
    assert (await client.answer()).json == {"value": "PONG"}


# Who is slow: F4


async def test_f4_a_body_that_comes_slowly_is_answered_408(stand: Stand) -> None:
    """F4: a byte now and then buys no time."""
    client = await stand.connect()
    await client.send(post(PING)[:-6])
    for _ in range(5):
        await stand.pass_time(11)
        await client.send(b" ")
    assert stand.connections_open == 1
    await stand.pass_time(6)
    (answer,) = await client.read_to_end()
    assert (answer.status, answer.json["error"]) == (408, "request timeout")
    assert answer.headers[b"connection"] == b"close"


async def test_f4_a_slow_head_behind_a_request_in_work_does_not_touch_that(stand: Stand) -> None:
    """F4: the answers come in order, whatever happens first."""
    stand.world.commit_s = 20
    client = await stand.connect()
    await client.send(line("SET k v") + b"POST / HTTP/1.1\r\n")
    await stand.pass_time(8)
    assert stand.requests_open == 2
    await stand.pass_time(14)
    assert [answer.status for answer in await client.read_to_end()] == [200, 408]
    assert stand.value("k") == b"v"


async def test_f4_a_pop_has_no_deadline_but_what_follows_it_has(stand: Stand) -> None:
    """F4"""
    client = await stand.connect()
    await client.send(line("BQPOP q") + b"POST / HTTP/1.1\r\n")
    await stand.pass_time(1_000_000)
    await stand.run("QPUSH q a")
    assert (await client.answer()).json == {"value": "a"}
    await stand.pass_time(5.5)
    (answer,) = await client.read_to_end()
    assert answer.status == 408


async def test_f4_deadlines_hold_after_a_slow_reader_has_caught_up(stand: Stand) -> None:
    """F4, F5"""
    await stand.run("SET big " + "x" * MIB)
    idle, busy = await stand.connect(), await stand.connect()
    await idle.send(line("GET big"))
    await busy.send(line("GET big") + b"POST / HT")
    await stand.pass_time(COMMIT_S)
    await stand.pass_time(20)
    assert (await busy.answer()).status == 200
    assert (await idle.answer()).status == 200
    await stand.pass_time(4.5)
    assert stand.connections_open == 2
    await stand.pass_time(1)
    (answer,) = await busy.read_to_end()
    assert answer.status == 408
    await stand.pass_time(68)
    assert stand.connections_open >= 1
    await stand.pass_time(3)
    assert await idle.ended()


async def test_an_idle_connection_is_closed_after_75_seconds_whatever_it_did_before(stand: Stand) -> None:
    fresh, used = await stand.connect(), await stand.connect()
    for client in (fresh, used):
        await client.send(b"GET /livez HTTP/1.1\r\n%b\r\n" % HOST)
        await client.answer()
    await stand.pass_time(10)
    await used.send(line("PING"))
    await stand.pass_time(COMMIT_S)
    await used.answer()
    await stand.pass_time(63)
    assert stand.connections_open == 2
    await stand.pass_time(2)
    assert await fresh.ended()
    await stand.pass_time(8)
    assert stand.connections_open == 1
    await stand.pass_time(4)
    assert await used.ended()


async def test_a_connection_that_never_sends_a_byte_is_closed_after_5_seconds_without_a_line(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    silent = [await stand.connect() for _ in range(20)]
    late = await stand.connect()
    await until(lambda: stand.connections_open == 21)
    await stand.pass_time(4)
    await late.send(line("PING"))
    await stand.pass_time(COMMIT_S)
    assert (await late.answer()).status == 200
    await stand.pass_time(0.5)
    for client in silent:
        assert await client.ended()
    assert stand.connections_open == 1
    assert caplog.text == ""


# How it ends: F13


@pytest.mark.parametrize("begin", [b"", post(PING), GET_STATS], ids=["first", "behind a command", "behind an errand"])
async def test_f13_a_defect_of_the_door_costs_one_connection(
    server: Server, begin: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F13"""
    client, other = await server.connect(), await server.connect()

    def fail(data: bytes, judge: Judge) -> RequestHead:
        return defect() if b"X: bad" in data else read_head(data, judge)

    with monkeypatch.context() as patch:
        patch.setattr("api.door.shared.read_head", fail)
        await client.send(begin + post(PING, head=HOST + b"X: bad\r\n"))
        if begin == GET_STATS:
            assert (await client.answer()).status == 200
        assert await client.ended()
    assert caplog.text.count("ZeroDivisionError: a defect") == 1
    await other.send(post(PING))
    assert (await other.answer()).status == 200
    await other.stream.aclose()
    await until(lambda: server.connections_open == 0)


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
