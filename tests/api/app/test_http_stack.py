"""HTTP over real sockets, raw bytes from a client: by the door, and by Hypercorn as we serve with it.

One test for each fault of Hypercorn, h11 or Quart-Trio that is mended, and for each promise of the door; what is
promised is the same. Everything runs in this process, on the loopback interface, with a fake engine.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from api.app import hypercorn_fixes
from api.app.hypercorn_fixes import hypercorn_config
from api.http.access import Access
from api.http.sockets import spread_probes, tune
from api.server import http as front
from api.server.http import serve_door, serve_hypercorn
from engine.commands.queues import BQPop
from engine.commands.server import Ping
from engine.limits import Limits
from engine.replies import Error, Failure
from tests.harness.http import HOST, PARK, PING, SETTINGS, SOON_S, Client, Serve, Server, chunked, post, serving, until

_CHUNKS = b"13\r\n" + PING + b"\r\n0\r\n\r\n"


@pytest.fixture(params=[serve_door, serve_hypercorn], ids=["door", "hypercorn"])
def serve(request: pytest.FixtureRequest) -> Serve:
    served: Serve = request.param
    return served


@pytest.fixture
async def server(nursery: trio.Nursery, serve: Serve) -> AsyncIterator[Server]:
    server = Server(nursery, serve)
    yield server
    server.hang_up()
    nursery.cancel_scope.cancel()


async def park(server: Server, more: bytes = b"") -> Client:
    client = await server.connect()
    await client.send(post(PARK) + more)
    await until(lambda: server.engine.statistics().waiters == 1)
    return client


# Connections: F4, F10, F11


@pytest.mark.parametrize(
    "request_bytes",
    [post(PING, head=HOST + b"Connection: close\r\n"), post(PING, version=b"1.0")],
    ids=["connection-close", "http-1.0"],
)
async def test_a_connection_closes_behind_the_answer_when_the_client_says_so(
    server: Server, request_bytes: bytes
) -> None:
    answers = await server.talk(request_bytes)
    assert [answer.json for answer in answers] == [{"value": "PONG"}]


async def test_what_is_sent_behind_connection_close_is_not_run_and_spoils_nothing(server: Server) -> None:
    answers = await server.talk(post(PING, head=HOST + b"Connection: close\r\n") + post(PING) + b"\x00rubbish")
    assert [answer.status for answer in answers] == [200]
    assert server.engine.commands == [Ping()]


async def test_f10_a_connection_serves_more_than_a_thousand_requests(server: Server) -> None:
    client = await server.connect()
    for _ in range(1001):
        await client.send(post(PING))
        assert (await client.answer()).status == 200


async def test_f10_a_hundred_pipelined_requests_in_one_packet_are_answered_in_order(server: Server) -> None:
    client = await server.connect()
    sets = b"".join(post(b'{"command": "SET k%d %d"}' % (n, n)) for n in range(50))
    await client.send(sets + b"".join(post(b'{"command": "GET k%d"}' % n) for n in range(50)))
    assert [(await client.answer()).body for _ in range(50)] == [b""] * 50
    assert [(await client.answer()).json for _ in range(50)] == [{"value": str(n)} for n in range(50)]


async def test_f10_expect_100_continue_and_head_and_options_work(server: Server) -> None:
    client = await server.connect()
    await client.send(post(PING, head=HOST + b"Expect: 100-continue\r\n").removesuffix(PING))
    assert (await client.answer()).status == 100
    await client.send(PING)
    assert (await client.answer()).json == {"value": "PONG"}
    await client.send(b"HEAD /livez HTTP/1.1\r\n%b\r\n" % HOST)
    assert (await client.answer(to_head=True)).headers[b"content-length"] == b"19"
    await client.send(b"OPTIONS / HTTP/1.1\r\n%b\r\n" % HOST)
    refused = await client.answer()
    assert (refused.status, refused.headers[b"allow"]) == (405, b"POST")


async def test_an_answer_is_one_packet(server: Server) -> None:
    client = await server.connect()
    await client.send(post(PING))
    assert (await client.stream.receive_some()).endswith(b'{"value": "PONG"}')
    await client.send(post(b'{"command": "SET k v"}'))
    assert (await client.stream.receive_some()).endswith(b"\r\n\r\n")


async def test_a_connection_its_client_closed_is_let_go_at_once(server: Server) -> None:
    client = await server.connect()
    await client.send(post(PING))
    await client.answer()
    assert server.connections_open == 1
    await client.stream.aclose()
    await until(lambda: server.connections_open == 0)


async def test_an_idle_connection_is_closed_after_its_time_and_a_parked_one_is_not(
    serve: Serve, patience: None, still_clock: MockClock
) -> None:
    async with serving(serve, keep_alive_s=5) as server:

        async def let_time_pass_until_there_are(connections: int) -> None:
            while server.connections_open != connections:
                still_clock.jump(1)
                await trio.testing.wait_all_tasks_blocked(0.001)

        parked = await park(server)
        idle = await server.connect()
        await until(lambda: server.connections_open == 2)
        await let_time_pass_until_there_are(1)
        still_clock.jump(100)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert server.engine.withdrawn == []
        assert await idle.ended()
        await server.talk(post(b'{"command": "QPUSH q v"}', version=b"1.0"))
        assert (await parked.answer()).json == {"value": "v"}
        await let_time_pass_until_there_are(0)
        assert await parked.ended()


@pytest.mark.parametrize("begin", [b"", post(PING)], ids=["first", "second"])
async def test_f4_a_head_that_comes_slowly_is_answered_408(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    for module in (front, hypercorn_fixes):
        monkeypatch.setattr(module, "HEAD_TIMEOUT_S", 0.1)
    async with serving(serve) as server:
        client = await server.connect()
        await client.send(begin + b"POST / HTTP/1.1\r\nX: ")

        async def trickle() -> None:
            while True:
                await trio.sleep(0.02)
                await client.send(b"x")  # a byte now and then buys no time

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            answers = await client.read_to_end()
            nursery.cancel_scope.cancel()
    assert [answer.status for answer in answers] == ([200] if begin else []) + [408]
    assert answers[-1].json["error"] == "request timeout"


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", bytes(range(256))],
    ids=["tls", "random"],
)
async def test_f11_what_is_no_http_is_refused_at_once(server: Server, data: bytes) -> None:
    (answer,) = await server.talk(data)
    assert (answer.status, answer.json["error"]) == (400, "invalid request")


@pytest.mark.parametrize(
    "data",
    [
        b"*1\r\n$4\r\nPING\r\n",
        b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*1\r\n$4\r\nINFO\r\n",
        b"*2\r\n$7\r\nCOMMAND\r\n$4\r\nDOCS\r\n",
        b"PING\r\n",
        b"ping\n",
        b"AUTH secret\r\nSET k v\r\n",
    ],
)
async def test_f11_a_client_of_redis_gets_an_error_that_it_prints(server: Server, data: bytes) -> None:
    """F11"""
    client = await server.connect()
    await client.send(data)
    received = b""
    with trio.fail_after(SOON_S):
        while more := await client.stream.receive_some():
            received += more
    assert received == (
        b"-ERR this is HTTP, not the Redis protocol: Redis clients cannot be used here;"
        b" send commands by POST, as JSON, with an HTTP client such as curl\r\n"
    )
    assert server.app.traffic()["refused_400"] == 1


async def test_f11_what_only_looks_like_it_is_http(server: Server) -> None:
    """F11: a line without a version is an old or broken HTTP client's, and the name of a command can be a method."""
    for data, status in (
        (b"GET /\r\n", 400),
        (b"PING /livez HTTP/1.1\r\n%b\r\n" % HOST, 405),
        (b"*1 / HTTP/1.1\r\n", 400),
    ):
        client = await server.connect()
        await client.send(data + b"\r\n")
        assert (await client.answer()).status == status


@pytest.mark.parametrize("many", [1, 2, 7])
async def test_empty_lines_before_a_request_and_behind_a_body_are_ignored(server: Server, many: int) -> None:
    """RFC 9112, 2.2"""
    client = await server.connect()
    lines = b"\r\n" * many
    await client.send(lines + (post(PING) + lines) * 3)
    assert [(await client.answer()).status for _ in range(3)] == [200] * 3
    for byte in (
        lines + post(PING) + lines + chunked(_CHUNKS) + lines + post(PING, head=HOST + b"Connection: close\r\n")
    ):
        await client.send(bytes([byte]))
    assert [answer.json for answer in await client.read_to_end()] == [{"value": "PONG"}] * 3


async def test_a_connection_on_which_only_empty_lines_came_is_idle(
    serve: Serve, patience: None, still_clock: MockClock
) -> None:
    """They are not the beginning of a head, which would have to be over in 5 s."""
    async with serving(serve, keep_alive_s=30) as server:
        clients = [await server.connect() for _ in range(3)]
        await clients[0].send(b"\r\n")
        await clients[1].send(post(PING) + b"\r\n\r\n")
        await clients[2].send(b"\r")
        await until(lambda: server.connections_open == 3)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await clients[2].send(b"\n")
        assert (await clients[1].answer()).status == 200
        for _ in range(40):
            await trio.testing.wait_all_tasks_blocked(0.001)
            still_clock.jump(0.5)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert server.connections_open == 3
        for client in clients:
            await client.send(post(PING))
            assert (await client.answer()).json == {"value": "PONG"}


async def test_every_status_is_said_in_words_too(server: Server) -> None:
    client = await server.connect()
    for data, line in (
        (post(PING), b"HTTP/1.1 200 OK\r\n"),
        (b"GET /stats HTTP/1.1\r\n%b\r\n" % HOST, b"HTTP/1.1 200 OK\r\n"),
        (b"GET / HTTP/1.1\r\n%b\r\n" % HOST, b"HTTP/1.1 405 Method Not Allowed\r\n"),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
    ):
        await client.send(data)
        assert (await client.stream.receive_some()).startswith(line)


async def test_what_is_refused_is_counted_by_status(serve: Serve) -> None:
    settings = dataclasses.replace(SETTINGS, access=Access(token="secret"))
    with_token = HOST + b"Authorization: Bearer secret\r\n"
    async with serving(serve, settings) as server:
        for data in (
            *(post(PING, head=with_token), post(b"{", head=with_token), post(b'{"command": "GET k"}', head=with_token)),
            *(post(PING, head=with_token, path=path) for path in (b"/nothing", b"/livez")),
            *[post(PING)] * 3,
            post(PING, head=b"Host: evil.example\r\n"),
            post(PING, head=with_token + b"Content-Encoding: gzip\r\n"),
            post(PING, head=with_token + b"X: y\r\n" * 101),
            post(PING, version=b"2.0"),
        ):
            client = await server.connect()
            await client.send(data)
            await client.answer()
        client = await server.connect()
        server.engine.ready = Failure(Error.UNAVAILABLE, "the disk is full")
        await client.send(b"GET /readyz HTTP/1.1\r\n%b\r\n" % with_token)
        assert (await client.answer()).status == 503
        await client.send(b"GET /stats HTTP/1.1\r\n%b\r\n" % with_token)
        members = (await client.answer()).json
    counted = {name: value for name, value in members.items() if name.startswith("refused_") and value}
    once = dict.fromkeys(("refused_400", "refused_403", "refused_405", "refused_415", "refused_431", "refused_505"), 1)
    assert counted == once | {"refused_401": 3, "refused_404": 2, "refused_503": 1}


async def test_f12_who_was_not_let_in_is_logged_with_the_reason_and_without_the_token(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """F12"""
    settings = dataclasses.replace(SETTINGS, access=Access(token="secret"))
    async with serving(serve, settings) as server:
        for token in (b"wrong\x1b[31m", b"hidden", b"wrong"):
            client = await server.connect()
            await client.send(post(PING, head=HOST + b"Authorization: Bearer %b\r\n" % token))
            await client.answer()
        await client.send(post(PING, head=b"Host: evil.example\r\n"))
        await client.answer()
    token_line, host_line = [record.getMessage() for record in caplog.records]
    assert token_line == "refused 127.0.0.1: 401 unauthorized, the token is wrong"
    assert host_line.startswith("refused 127.0.0.1: 403 forbidden, the Host header 'evil.example' is not a name of")


# Parsing: rows F1, F2, F3


_H2_UPGRADE = b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
_WEBSOCKET = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
_FIELDS = b"".join(b"a%d: b\r\n" % n for n in range(101))

REFUSED = {
    "length and coding": (chunked(_CHUNKS, b"Content-Length: 5\r\n"), 400),
    "two lengths": (post(PING, head=HOST + b"Content-Length: 5\r\n"), 400),
    "another coding": (chunked(_CHUNKS).replace(b"chunked", b"gzip, chunked"), 501),
    "coding on 1.0": (chunked(_CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    "folded line": (post(PING, head=HOST + b"X: a\r\n b\r\n"), 400),
    "first line folded": (post(PING, head=b" X: a\r\n" + HOST), 400),
    "bare LF": (post(PING, head=HOST + b"X: a\nY: b\r\n"), 400),
    "bare LF everywhere": (post(PING).replace(b"\r\n", b"\n"), 400),
    "bare CR": (post(PING, head=HOST + b"X: a\rY: b\r\n"), 400),
    "space before colon": (post(PING, head=HOST + b"X : a\r\n"), 400),
    "bad chunk size": (chunked(b"zz\r\n" + PING), 400),
    "bad chunk end": (chunked(b"13\r\n" + PING + b"xx0\r\n\r\n"), 400),
    "two hosts": (post(PING, head=HOST + HOST), 400),
    "no host": (post(PING, head=b""), 400),
    "other host in the target": (post(PING).replace(b" / ", b" http://evil.example/ "), 400),
    "target without a slash": (post(PING).replace(b" / ", b" ? "), 400),
    "connect": (post(PING).replace(b"POST / ", b"CONNECT localhost:80 "), 400),
    "h2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "version 2": (post(PING, version=b"2.0"), 505),
    "version 0.9": (post(PING, version=b"0.9"), 505),
    "version of three digits": (post(PING, version=b"1.10"), 400),
    "no version": (b"POST /\r\n\r\n", 400),
    "method in small letters": (post(PING).replace(b"POST", b"post"), 501),
    "method in mixed letters": (post(PING).replace(b"POST", b"pOST"), 501),
    "head in small letters": (b"head /livez HTTP/1.1\r\n%b\r\n" % HOST, 501),
    "malformed host": (post(PING, head=b"Host: local host\r\n"), 400),
    "malformed port": (post(PING, head=b"Host: localhost:80:80\r\n"), 400),
    "bare CR in an extension": (chunked(b"13;a\rb\r\n%b\r\n0\r\n\r\n" % PING), 400),
    "bare LF behind a trailer": (chunked(b"13\r\n%b\r\n0\r\nX: y\n\r\n" % PING), 400),
    "folded trailer": (chunked(b"13\r\n%b\r\n0\r\nX: y\r\n z\r\n\r\n" % PING), 400),
    "chunk without its size": (chunked(b"\r\n"), 400),
    "101 fields in one packet": (post(PING, head=HOST + _FIELDS), 431),
    "5,050 fields in one packet": (post(PING, head=HOST + _FIELDS * 50), 431),
    "long head in one packet": (post(PING, head=HOST + b"X: " + b"a" * 16384 + b"\r\n"), 431),
    "endless head": (post(PING, head=HOST + b"X: " + b"a" * 300_000 + b"\r\n"), 431),
    "long uri": (post(PING).replace(b" / ", b" /" + b"a" * 8192 + b" "), 414),
    "endless uri": (b"GET /" + b"a" * 300_000, 414),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
async def test_f1_f3_f8_a_request_not_to_be_trusted_is_refused_in_json_and_is_the_last(
    server: Server, data: bytes, status: int
) -> None:
    (answer,) = await server.talk(data + post(PING))
    assert answer.status == status
    assert answer.headers[b"content-type"] == b"application/json"
    assert set(answer.json) == {"error", "detail"}
    assert "bytearray" not in answer.json["detail"]
    assert server.engine.commands == []


async def test_f1_what_looks_like_it_but_is_allowed_is_served(server: Server) -> None:
    client = await server.connect()
    for data in (
        chunked(_CHUNKS),
        post(PING).replace(b" / ", b" http://localhost/ "),
        post(PING, head=HOST + b"".join(b"a%d: b\r\n" % n for n in range(98))),
        post(PING, head=HOST + b"X: \t a b \t\r\n"),
    ):
        await client.send(data)
        assert (await client.answer()).json == {"value": "PONG"}


async def test_f1_a_head_may_come_byte_by_byte(server: Server) -> None:
    client = await server.connect()
    for byte in post(PING):
        await client.send(bytes([byte]))
    assert (await client.answer()).json == {"value": "PONG"}


@pytest.mark.parametrize("upgrade", [_H2_UPGRADE, _WEBSOCKET], ids=["h2c", "websocket"])
async def test_f2_an_upgrade_is_ignored(server: Server, upgrade: bytes) -> None:
    client = await server.connect()
    await client.send(b"GET /livez HTTP/1.1\r\n%b%b\r\n" % (HOST, upgrade))
    assert (await client.answer()).json == {"status": "alive"}
    await client.send(post(PING, head=HOST + upgrade))
    assert (await client.answer()).json == {"value": "PONG"}


# Bodies: row F6


async def test_f6_a_client_that_sends_a_body_too_large_can_read_the_answer(serve: Serve) -> None:
    settings = dataclasses.replace(SETTINGS, limits=Limits(body_bytes_max=1_000_000), linger_s=SOON_S)
    async with serving(serve, settings) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\n%bContent-Length: 1000001\r\n\r\n" % HOST)
        answer = await client.answer()
        assert (answer.status, answer.json["error"]) == (413, "too large")
        assert answer.headers[b"connection"] == b"close"
        await client.send(b"x" * 1_000_001)
        assert await client.ended()
        (late,) = await server.talk(chunked((b"10000\r\n" + b"x" * 65536 + b"\r\n") * 28 + b"0\r\n\r\n"))
        assert late.status == 413


async def test_f6_a_body_as_large_as_allowed_is_taken(server: Server) -> None:
    client = await server.connect()
    await client.send(post(PING.ljust(16 * 1024 * 1024)))
    assert (await client.answer()).json == {"value": "PONG"}


# Clients that leave: rows E2, E3


async def _fin(client: Client) -> None:
    await client.stream.aclose()


async def _half_close(client: Client) -> None:
    await client.stream.send_eof()


async def _reset(client: Client) -> None:
    client.reset()


LEAVES = pytest.mark.parametrize("leave", [_fin, _half_close, _reset])


@LEAVES
async def test_e2_a_parked_pop_is_withdrawn_when_its_client_leaves(
    server: Server, patience: None, still_clock: MockClock, leave: Callable[[Client], Awaitable[None]]
) -> None:
    """E2: with FIN, half-close or RST, at once: the clock stands still, so nobody looks only now and then."""
    client = await park(server)
    await leave(client)
    await until(lambda: server.engine.withdrawn == [b"q"])
    await until(lambda: server.connections_open == 0)


@LEAVES
@pytest.mark.parametrize("pipelined", [1, 600], ids=["few", "more than a read"])
async def test_e3_a_client_that_leaves_is_seen_behind_pipelined_requests_and_none_of_them_is_run(
    server: Server, leave: Callable[[Client], Awaitable[None]], pipelined: int
) -> None:
    """E3"""
    client = await park(server, post(PING) * pipelined)
    await leave(client)
    await until(lambda: server.engine.withdrawn == [b"q"])
    await until(lambda: server.connections_open == 0)
    assert server.engine.commands == [BQPop(b"q")]


async def test_what_was_pipelined_behind_a_parked_pop_is_run_when_its_turn_comes(server: Server) -> None:
    client = await park(server, post(PING))
    await trio.sleep(0.05)  # long enough for the reader to read ahead
    await client.send(post(b'{"command": "GET k"}'))
    await server.talk(post(b'{"command": "QPUSH q v"}', version=b"1.0"))
    assert [(await client.answer()).status for _ in range(3)] == [200, 200, 404]


# Shutdown and slow readers: rows E8, F5, H1


async def test_e8_h1_shutdown_answers_the_parked_and_closes_the_idle(serve: Serve) -> None:
    """E8, H1"""
    async with serving(serve, grace_s=30) as server:
        idle, begun = await server.connect(), await server.connect()
        await begun.send(b"POST / HT")
        parked = await park(server)
        server.stop()
        answer = await parked.answer()
        assert (answer.status, answer.json["error"]) == (503, "unavailable")
        assert answer.headers[b"retry-after"] == b"1"
        assert await parked.ended()
        assert await idle.ended()
        assert await begun.ended()
        with trio.fail_after(SOON_S):
            await server.stopped.wait()


async def test_f5_h1_a_client_that_does_not_read_does_not_hold_up_the_shutdown(serve: Serve) -> None:
    """F5, H1"""
    async with serving(serve, grace_s=0.1) as server:
        client = await server.connect()
        await client.send(post(b'{"command": "SET k %b"}' % (b"v" * 1_000_000)))
        assert (await client.answer()).status == 200
        await client.send(post(b'{"command": "GET k"}') * 30)
        await until(lambda: len(server.engine.commands) > 1)
        await trio.sleep(0.1)  # until the buffers of the kernel are full
        server.stop()
        with trio.fail_after(SOON_S):
            await server.stopped.wait()


async def test_e2_f5_connections_inherit_what_the_listener_was_told() -> None:
    """E2, F5: the probes that find out that a client has vanished, and how long an answer may be under way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tune(listener, user_timeout_s=7)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                options: list[tuple[int, int]] = [
                    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
                    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
                    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                ]
                assert [accepted.getsockopt(*option) for option in options] == [1, 1, 40, 7, 4, 7000]


async def test_e2_the_probes_of_a_crowd_are_spread() -> None:
    """E2: those of 10,000 that parked together came in one burst, and 4,388 clients were taken for gone."""
    drawn = set()
    with trio.socket.socket() as connection:
        for _ in range(200):
            spread_probes(connection)
            drawn.add(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
            assert 3 <= connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) <= 7
    assert min(drawn) >= 15
    assert max(drawn) <= 40
    assert len(drawn) > 10


async def test_h3_a_listener_is_not_inherited_by_child_processes() -> None:
    """H3"""
    listener = socket.create_server(("127.0.0.1", 0))
    (owned,) = hypercorn_config([listener.detach()]).create_sockets().insecure_sockets
    with owned:
        assert not owned.get_inheritable()


async def test_the_log_is_ours_and_holds_no_requests(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        await server.talk(post(PING, version=b"1.0"))
        await server.talk(b"GARBAGE \x1b[31m\r\n\r\n")
    assert caplog.text == ""
