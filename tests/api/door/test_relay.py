"""The way from the door to the application: what is no command is answered as if there were no door."""

from __future__ import annotations

import dataclasses
import os

import pytest
import trio
import trio.testing

from api.app.application import CHECKPOINT_WAITERS_MAX
from api.http.access import Access
from api.server.http import serve_door
from engine.commands.server import Ping
from engine.commands.values import Set
from engine.face import Checkpoint
from tests.api.door.stand import GET_LIVEZ, GET_STATS
from tests.harness.http import (
    HOST,
    PING,
    SETTINGS,
    Client,
    Server,
    chunked,
    http,
    is_served,
    post,
    serving,
    until,
)


async def test_what_is_not_a_command_is_answered_by_the_application(server: Server) -> None:
    client = await server.connect()
    for data, status, body in (
        (http(b"GET /livez"), 200, {"status": "alive"}),
        (http(b"GET /readyz?verbose"), 200, {"status": "ready", "fsync": "always"}),
        (http(b"GET http://localhost/livez"), 200, {"status": "alive"}),
        (
            post(b"", path=b"/checkpoint"),
            200,
            {"segments": 2, "folded_bytes": 3000, "snapshot_bytes": 100, "duration_s": 0.5},
        ),
        (chunked(b"5\r\nhello\r\n0\r\n\r\n").replace(b"POST / ", b"GET /livez "), 200, {"status": "alive"}),
    ):
        await client.send(data)
        answer = await client.answer()
        assert (answer.status, answer.json) == (status, body)
        assert answer.headers[b"content-type"] == b"application/json"
        assert b"connection" not in answer.headers
        assert b"date" in answer.headers


async def test_the_answer_to_head_has_no_body_also_when_it_is_refused(patience: None) -> None:
    settings = dataclasses.replace(SETTINGS, access=Access(token="secret"))
    async with serving(serve_door, settings) as server:
        client = await server.connect()
        for path, status in (("livez", 200), ("", 401), ("nothing", 401), ("readyz", 200)):
            await client.send(http(b"HEAD /" + path.encode()))
            answer = await client.answer(to_head=True)
            assert (answer.status, int(answer.headers[b"content-length"]) > 0) == (status, True)
        await client.send(http(b"HEAD /", host=HOST * 2))
        assert [answer.status for answer in await client.read_to_end()] == [400]


async def test_a_head_at_its_limits_is_not_over_them_behind_the_door(server: Server) -> None:
    """F3: what the relay adds does not count."""
    client = await server.connect()
    fields = b"".join(b"a%d: b\r\n" % number for number in range(99))
    rest = 16 * 1024 - len(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ")
    for head in (HOST + fields, HOST + b"X: " + b"a" * rest + b"\r\n"):
        await client.send(http(b"GET /livez", host=head))
        assert (await client.answer()).status == 200


async def test_a_crowd_that_asks_for_the_application_at_the_same_moment_is_answered(server: Server) -> None:
    """F13"""
    clients = [await server.connect() for _ in range(300)]
    for client in clients:
        os.write(client.stream.socket.fileno(), GET_STATS)  # no turn of the event loop in between
    assert {(await client.answer()).status for client in clients} == {200}


async def test_http_1_0_needs_no_host_and_is_closed(server: Server) -> None:
    for data in (b"GET /livez HTTP/1.0\r\n\r\n", post(PING, head=b"", version=b"1.0")):
        (answer,) = await server.talk(data)
        assert (answer.status, answer.headers[b"connection"]) == (200, b"close")


async def test_f13_when_the_application_gives_no_answer_that_is_answered_500(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F13"""

    async def say_nothing(*_: object) -> None:
        pass

    client = await server.connect()
    with monkeypatch.context() as patch:
        patch.setattr(server.app, "asgi_app", say_nothing)
        await client.send(GET_STATS + post(PING))
        answer = await client.answer()
    assert (answer.status, answer.json) == (500, {"error": "internal error"})
    assert "NoAnswer" in caplog.text
    assert (await client.answer()).json == {"value": "PONG"}


class _SlowCheckpoint:
    """Stands where a checkpoint of the engine does, and takes as long as the test likes."""

    def __init__(self) -> None:
        self.begun, self.go_on = trio.Event(), trio.Event()
        self.cancelled = False
        self.waiting = 0

    async def __call__(self) -> Checkpoint:
        self.begun.set()
        self.waiting += 1
        try:
            await self.go_on.wait()
        except trio.Cancelled:
            self.cancelled = True
            raise
        finally:
            self.waiting -= 1
        return Checkpoint(segments=1, folded_bytes=2, snapshot_bytes=3, duration_s=4.0)


async def _checkpoint(server: Server, monkeypatch: pytest.MonkeyPatch) -> tuple[Client, _SlowCheckpoint]:
    """A client that waits for a checkpoint, with a command pipelined behind it."""
    slow = _SlowCheckpoint()
    monkeypatch.setattr(server.engine, "checkpoint", slow)
    client = await server.connect()
    await client.send(post(PING) + post(b"", path=b"/checkpoint") + post(b'{"command": "SET k v"}'))
    await slow.begun.wait()
    assert (await client.answer()).json == {"value": "PONG"}
    return client, slow


async def test_clients_that_wait_for_a_checkpoint_hold_up_neither_probes_nor_the_application(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = _SlowCheckpoint()
    monkeypatch.setattr(server.engine, "checkpoint", slow)
    waiting = [await server.connect() for _ in range(CHECKPOINT_WAITERS_MAX)]
    for client in waiting:
        await client.send(post(b"", path=b"/checkpoint"))
    await until(lambda: slow.waiting == CHECKPOINT_WAITERS_MAX)
    other = await server.connect()
    for data, status in (
        (GET_LIVEZ, 200),
        (http(b"GET /readyz"), 200),
        (GET_STATS, 200),
        (http(b"GET /nothing"), 404),
        (post(b"", path=b"/checkpoint"), 503),
        (post(PING), 200),
    ):
        await other.send(data)
        assert (await other.answer()).status == status
    waiting.pop().reset()
    await until(lambda: slow.waiting == CHECKPOINT_WAITERS_MAX - 1)
    await other.send(post(b"", path=b"/checkpoint"))
    await until(lambda: slow.waiting == CHECKPOINT_WAITERS_MAX)
    slow.go_on.set()
    assert {(await client.answer()).status for client in (*waiting, other)} == {200}


async def test_nothing_is_started_behind_what_the_application_works_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, slow = await _checkpoint(server, monkeypatch)
    await is_served(server)
    assert server.engine.commands == [Ping(), Ping()]
    slow.go_on.set()
    assert (await client.answer()).json["segments"] == 1
    assert (await client.answer()).status == 200
    assert server.engine.commands == [Ping(), Ping(), Set(b"k", b"v")]


async def test_e3_a_client_that_leaves_takes_its_request_back_from_the_application(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E3"""
    client, slow = await _checkpoint(server, monkeypatch)
    client.reset()
    await until(lambda: slow.cancelled)
    await until(lambda: server.connections_open == 0)
    assert server.engine.commands == [Ping()]


async def test_h1_a_shutdown_waits_for_what_the_application_works_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H1"""
    client, slow = await _checkpoint(server, monkeypatch)
    server.stop()
    await trio.testing.wait_all_tasks_blocked()
    slow.go_on.set()
    (answer,) = await client.read_to_end()
    assert (answer.json["segments"], answer.headers[b"connection"]) == (1, b"close")
    await server.stopped.wait()
    assert server.engine.commands == [Ping()]
