"""The door (api/door/door.py): whatever clients send it goes on, and how it shuts down.

The way to the application is in test_relay.py; what is promised whichever way clients are served in
tests/api/app/test_http_stack.py.
"""

from __future__ import annotations

import contextlib
import random

import pytest
import trio
import trio.testing

from tests.api.door.stand import COMMIT_S, GET_LIVEZ, MIB, Stand, line
from tests.harness.http import PING, Server, chunked, is_served, post, until

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
    await until(lambda: server.connections_open == 0)
    assert server.app.traffic()["requests_open"] == 0
    assert server.app.service.budget.left == budget_bytes
    assert caplog.text == ""
    await is_served(server)


# Shutdown: H1, E8


async def test_h1_a_shutdown_answers_what_is_in_work_and_nothing_behind_it(stand: Stand) -> None:
    """H1"""
    stand.world.commit_s = 2.5
    pipelined, body, head, big = [await stand.connect() for _ in range(4)]
    await pipelined.send(line("SET a 1") + line("SET b 2") + b"POST / HT")
    await body.send(post(PING)[:-6])
    await head.send(b"POST /")
    await big.send(post(PING.ljust(100_000))[:-6])
    await until(lambda: stand.requests_open == 4)
    stand.stop()
    stand.world.engine.close()
    assert [(answer.status, answer.json["error"]) for answer in await body.read_to_end()] == [(503, "unavailable")]
    assert [answer.status for answer in await big.read_to_end()] == [503]
    assert await head.ended()
    await stand.pass_time(1.25)  # those who were refused may take a second to close
    assert stand.connections_open == 1
    await stand.pass_time(1.25)
    answers = await pipelined.read_to_end()
    assert [answer.status for answer in answers] == [200, 200]
    await stand.pass_time(5)
    await until(stand.stopped.is_set)
    await stand.world.ended.wait()


async def test_h1_f5_a_shutdown_waits_a_moment_for_readers_and_gives_back_what_they_did_not_read(stand: Stand) -> None:
    """H1, F5, E5"""
    await stand.run("SET big " + "x" * MIB, "QPUSH q a b")
    client = await stand.connect()
    await client.send(line("GET big") + line("BQPOP q 0"))
    await stand.values_are(b"b")
    await stand.pass_time(COMMIT_S)
    await until(lambda: stand.requests_open == 0)
    stand.stop()
    stand.world.engine.close()
    await stand.pass_time(2.5)
    assert not stand.stopped.is_set()
    await stand.pass_time(1)
    await until(stand.stopped.is_set)
    await stand.pass_time(COMMIT_S * 2)
    await stand.world.ended.wait()
    assert stand.queue() == [b"a", b"b"]
