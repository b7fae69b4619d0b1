"""The door and Hypercorn alone answer alike: the same requests to both, each over a fresh engine.

Status and body are the same byte for byte, and so are the fields that mean something to a client. The door does not ask
for a body that is there already (`100 Continue`), and reads bodies whole that Hypercorn does not wait for.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from collections.abc import Iterable

import pytest
import trio

from api.app.application import HttpSettings
from api.http.access import Access
from api.server.http import serve_door, serve_hypercorn
from engine.limits import Limits
from tests.api.app.test_http_stack import REFUSED
from tests.harness.http import HOST, PING, SETTINGS, SOON_S, Serve, chunked, http, post, serving
from tests.harness.world import World

FIELDS = (b"content-type", b"content-length", b"allow", b"retry-after", b"www-authenticate", b"connection")

Seen = list[tuple[int, bytes, dict[bytes, bytes]]]


def body(text: str | bytes) -> bytes:
    return post(text.encode() if isinstance(text, str) else text)


LAST = http(b"GET /livez", b"Connection: close")
"""Sent behind each request: whether it is answered shows whether the connection stayed open."""

COMMANDS = [
    '{"command": "SET k v"}',
    '{"command": "GET k"}',
    '{"command": "GET", "key": "k"}',
    '{"command": "SET k w NX"}',
    '{"command": "SET", "key": "k", "value": "w", "options": {"nx": true}}',
    '{"command": "SET missing w XX"}',
    '{"command": "TTL k"}',
    '{"command": "SET k w EX 1000"}',
    '{"command": "QPUSH k a"}',
    '{"command": "QPUSH q a b"}',
    '{"command": "QPUSH", "key": "q", "value": ["c", 1.0, "\\u0000\\ud83d\\ude00"]}',
    '{"command": "GET q"}',
    '{"command": "QLEN q"}',
    *(['{"command": "QPOP q"}', '{"command": "BQPOP q"}'] * 2),
    '{"command": "QPOP q"}',
    '{"command": "QPOP q"}',
    '{"command": "QPOP none"}',
    '{"command": "BQPOP q 0"}',
    '{"command": "BQPOP q 0.01"}',
    '{"command": "DELETE k q"}',
    '{"command": "DELETE k"}',
    '{"command": "DELETE", "key": ["k", "q"]}',
    '{"command": "EXISTS k q"}',
    '{"command": "SET \\"b x\\" \\"\\\\xff\\""}',
    '{"command": "GET \'b x\'"}',
    '{"command": "GET", "key": "b x"}',
    '{"command": "PING"}',
    '{"command": "BREW tea"}',
    '{"command": ""}',
    '{"command": "SET k"}',
    '{"command": "SET k v EX 0"}',
    '{"command": "SET", "key": null}',
    '{"command": "GET", "key": "k", "x": 1}',
    '{"command": 5}',
    '{"key": "k"}',
    '["SET", "k", "v"]',
    *(
        "",
        " ",
        "{",
        "[]",
        "null",
        "5",
        '"PING"',
        "nan",
        '{"command": "PING"} x',
        '{"command": "PING", "command": "PING"}',
    ),
    '{"command": "SET k %s"}' % ("v" * 1_048_577),
    '{"command": "SET %s v"}' % ("k" * 4097),
    '{"command": "GET", "key": "%s"}' % ("k" * 4097),
    '{"command": "SET big %s"}' % ("v" * 1_000_000),
    '{"command": "GET big"}',
    '{"command": "GET", "key": "big"}',
    '{"command": "DEL' + " k" * 70_000 + '"}',
    "[" * 100 + "]" * 100,
]

BATCHES = [
    "[]",
    "{}",
    "",
    "[1]",
    '["PING"]',
    '[{"command": "PING"}]',
    '[{"command": "SET k v"}, {"command": "GET", "key": "k"}, {"command": "BREW"}, {"command": "QPOP q"}, {}]',
    '[{"command": "SET k v"}, {"command": "SET k w NX"}]',
    '[{"command": "QPUSH q a b"}, {"command": "BQPOP q"}, {"command": "BQPOP q"}, {"command": "BQPOP q"}]',
    '[{"command": "GET k"}, {"command": "GET missing"}]',
    '[{"command": "PING"},]',
    '[{"command": "PING"}' + ', {"command": "PING"}' * 999 + "]",
    '[{"command": "PING"}' + ', {"command": "PING"}' * 1000 + "]",
    '[{"command": "QLEN q"}' + ', {"command": "QPUSH q v"}' * 5000 + "]",
    '[{"command": "QLEN q"}' + ', {"command": "QPOP q"}' * 5000 + "]",
    '[{"command": "SET big %s"}, {"command": "GET big"}]' % ("v" * 500_000),
]

PATHS = [
    *("/", "//", "/livez", "/livez/", "/livez?x=y", "/livez?", "/livez#x", "/%6Civez", "/livez%00", "/livez%0d%0a"),
    *("/nothing", "/./livez", "/a/../livez", "/%2e%2e/livez", "/%2F", "/%ff", "/%zz", "/\\", '/{|}^`"<>', "/a;b=c"),
    *("/pipeline", "/multi", "/multi/", "/pipeline%20", "/checkpoint", "/static/x", "/readyz", "/a:b", "?", "*"),
    *("http://localhost/livez", "HTTP://LOCALHOST/livez?x", "http://localhost", "http://localhost?x", "livez"),
    *("https://localhost/", "http://localhost:80/livez", "http:///livez", "http://u@localhost/", "ftp://localhost/"),
    *("http://localhost//", "/" + "a" * 8000),
]

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "M-SEARCH"]

HEADS = {
    "http 1.0": post(PING, version=b"1.0"),
    "http 1.0 without host": post(PING, version=b"1.0", head=b""),
    "http 1.0 keep-alive": post(PING, version=b"1.0", head=b"Connection: keep-alive\r\n"),
    "connection close": post(PING, head=HOST + b"Connection: close\r\n"),
    "connection list": post(PING, head=HOST + b"Connection: x, Close\r\n"),
    "foreign host": post(PING, head=b"Host: evil.example\r\n"),
    "foreign host, get": http(b"GET /livez", host=b"Host: evil.example\r\n"),
    "foreign host, head": http(b"HEAD /livez", host=b"Host: evil.example\r\n"),
    "odd hosts": b"".join(
        post(PING, head=b"Host: %b\r\n" % host) for host in (b"", b"[::1]:80", b"LOCALHOST.", b"127.1", b"\xff")
    ),
    "origin": post(PING, head=HOST + b"Origin: http://localhost\r\n"),
    "foreign origin": post(PING, head=HOST + b"Origin: http://evil.example\r\n"),
    "null origin": post(PING, head=HOST + b"Origin: null\r\n"),
    "expect with the body": post(PING, head=HOST + b"Expect: 100-continue\r\n"),
    "expect nothing": http(b"GET /livez", b"Expect: 100-continue"),
    "expect something else": post(PING, head=HOST + b"Expect: tea\r\n"),
    "content type": post(PING, head=HOST + b"Content-Type: text/plain; charset=utf-16\r\n"),
    "content encoding": post(gzip.compress(PING, mtime=0), head=HOST + b"Content-Encoding: gzip\r\n"),
    "accept": http(b"GET /nothing", b"Accept: text/html", b"Accept-Encoding: gzip", b"Range: bytes=0-1"),
    "conditions": http(b"GET /livez", b"If-None-Match: *", b"If-Modified-Since: Sun, 22 Nov 2026 08:00:00 GMT"),
    "method override": post(PING, head=HOST + b"X-HTTP-Method-Override: GET\r\nX-Forwarded-Host: evil.example\r\n"),
    "100 fields": http(b"GET /livez", *(b"a%d: b" % n for n in range(99))),
    "100 fields, post": post(PING, head=HOST + b"".join(b"a%d: b\r\n" % n for n in range(98))),
    "101 fields": http(b"GET /livez", *(b"a%d: b" % n for n in range(100))),
    "longest head": http(b"GET /livez", b"X: " + b"a" * (16384 - 42)),
    "longest head without spaces": http(b"GET /livez", b"X:" + b"a" * (16384 - 41)),
    "longest uri": http(b"GET /" + b"a" * 8191),
    "cookies": http(b"GET /livez", *([b"Cookie: a=b"] * 20)),
    "empty fields": http(b"GET /livez", b"X:", b"Y: "),
    "foreign fetch site": post(PING, head=HOST + b"Origin: https://localhost\r\nSec-Fetch-Site: cross-site\r\n"),
    "own fetch site": post(PING, head=HOST + b"Origin: https://localhost\r\nSec-Fetch-Site: same-origin\r\n"),
    "later minor version": post(PING, version=b"1.7"),
    "identity": post(PING, head=HOST + b"Content-Encoding: identity\r\n"),
    "resp": b"*1\r\n$4\r\nPING\r\n",
    "upgrades": http(b"GET /livez", b"Upgrade: websocket, h2c", b"Connection: upgrade"),
    "length twice": post(PING, head=HOST + b"Content-Length: 19\r\n"),
    "length with a plus": post(PING).replace(b": 19", b": +19"),
    "length with zeros": post(PING).replace(b": 19", b": 0019"),
    "length of many digits": post(PING).replace(b": 19", b": 99999999999999999999"),
    "too large": post(b"").replace(b": 0", b": 16777217"),
    "too large for nothing": post(b"", path=b"/nothing").replace(b": 0", b": 16777217"),
    "control character": http(b"GET /livez", b"X: a\x01b"),
    "empty coding": http(b"GET /livez", b"Transfer-Encoding:"),
    "coding twice": chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"),
    "body of get": http(b"GET /livez", b"Content-Length: 3") + b"abc",
    "body of nothing": post(b"abc", path=b"/nothing"),
    "body of a refused request": post(b"x" * 1000, head=b"Host: evil.example\r\n"),
    "empty lines before": b"\r\n\r\n" + post(PING),
}

CHUNKED = {
    "one": chunked(b"13\r\n%b\r\n0\r\n\r\n" % PING),
    "many": chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in PING) + b"0\r\n\r\n"),
    "capitals, zeros": chunked(b"00013\r\n%b\r\n000\r\n\r\n" % PING),
    "extensions": chunked(b'13;a=b;c="d"\r\n%b\r\n0;e\r\n\r\n' % PING),
    "trailers": chunked(b"13\r\n%b\r\n0\r\nX: y\r\nContent-Length: 5\r\n\r\n" % PING),
    "none": chunked(b"0\r\n\r\n"),
    "bad size": chunked(b"xyz\r\n"),
    "bad end": chunked(b"3\r\nabcd\r\n"),
    "negative": chunked(b"-3\r\nabc\r\n0\r\n\r\n"),
    "bare line feeds": chunked(b"3\nabc\n0\n\n"),
}


async def answers_of(serve: Serve, cases: Iterable[bytes], settings: HttpSettings) -> list[Seen]:
    """What one way answers, each case on a connection of its own."""
    seen = []
    async with trio.open_nursery() as nursery:
        world = World(nursery, limits=settings.limits)
        await world.start()
        async with serving(serve, settings, real=world.engine) as server:
            for data in cases:
                client = await server.connect()
                await client.send(data + LAST)
                received = b""
                with trio.fail_after(SOON_S):
                    while more := await client.stream.receive_some():
                        received += more
                answers = [_answer(one) for one in re.split(rb"(?=HTTP/1\.1 \d\d\d )", received)[1:]]
                seen.append([answer for answer in answers if answer[0] != 100])
        await world.kill()
    return seen


def _answer(data: bytes) -> tuple[int, bytes, dict[bytes, bytes]]:
    head, _, text = data.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    split = [field.partition(b": ") for field in fields]
    return int(line.split()[1]), text, {name.lower(): value for name, _, value in split if name.lower() in FIELDS}


async def compare(cases: dict[str, bytes], settings: HttpSettings = SETTINGS) -> None:
    """Fails with every case that is answered differently."""
    door = await answers_of(serve_door, cases.values(), settings)
    alone = await answers_of(serve_hypercorn, cases.values(), settings)
    lines = [
        f"{name}\n   by the door: {_short(one)}\n   by Hypercorn: {_short(other)}"
        for name, one, other in zip(cases, door, alone, strict=True)
        if one != other
    ]
    assert not lines, "\n" + "\n".join(lines)


def _short(seen: Seen) -> Seen:
    return [(status, text[:100], fields) for status, text, fields in seen]


async def test_commands_are_answered_alike() -> None:
    await compare({text[:60] + str(number): body(text) for number, text in enumerate(COMMANDS)})


async def test_bytes_that_are_no_text_are_answered_alike() -> None:
    texts = [
        *(
            PING.decode().encode("utf-16"),
            b"\xef\xbb\xbf" + PING,
            b'{"command": "SET k \xff"}',
            b'{"command": "SET k \xc3\xa9"}',
        ),
        *(
            b'{"command": "GET k"}',
            b'{"command": "SET k \\ud800"}',
            b"\x00",
            PING + b"\x00",
            b'{"command": "SET k \x01"}',
        ),
    ]
    await compare({repr(text): body(text) for text in texts})


@pytest.mark.parametrize("path", [b"/pipeline", b"/multi"])
async def test_batches_are_answered_alike(path: bytes) -> None:
    await compare({text[:60] + str(number): post(text.encode(), path=path) for number, text in enumerate(BATCHES)})


@pytest.mark.parametrize("method", METHODS)
async def test_methods_and_paths_are_answered_alike(method: str) -> None:
    await compare({path: http(f"{method} {path}".encode()) for path in PATHS})


async def test_heads_are_answered_alike() -> None:
    await compare(HEADS)


async def test_f1_chunks_are_answered_alike() -> None:
    """F1"""
    await compare(CHUNKED)


async def test_f1_f3_f8_what_is_not_to_be_trusted_is_answered_alike() -> None:
    """F1, F3, F8"""
    await compare({name: data for name, (data, _) in REFUSED.items()})


async def test_who_has_no_token_is_answered_alike() -> None:
    settings = dataclasses.replace(SETTINGS, access=Access(token="secret"))
    tokens = [b"", b"Bearer secret", b"bearer secret", b"Bearer wrong", b"Basic secret", b"Bearer", b"Bearer secret x"]
    cases = {}
    for line in (
        b"POST /",
        b"GET /livez",
        b"GET /readyz",
        b"HEAD /nothing",
        b"POST /pipeline",
        b"PUT /",
    ):
        for token in tokens:
            fields = [b"Authorization: " + token] if token else []
            cases[f"{line!r} {token!r}"] = http(line, b"Content-Length: 19", *fields) + PING
    await compare(cases, settings)


async def test_limits_are_answered_alike() -> None:
    limits = Limits(waiters_max=0, memory_bytes_max=2000, body_bytes_max=70_000, bodies_bytes_max=40_000, mailbox_max=1)
    cases = {
        "waiters": body('{"command": "BQPOP q"}'),
        "memory": body('{"command": "SET k %s"}' % ("v" * 3000)),
        "memory, fields": body('{"command": "SET", "key": "k", "value": "%s"}' % ("v" * 3000)),
        "memory, unit": post(b'[{"command": "SET k %b"}]' % (b"v" * 3000), path=b"/multi"),
        "body": body(" " * 70_001),
        "bodies": body(" " * 45_000),
        "body in chunks": chunked(b"20000\r\n%b\r\n0\r\n\r\n" % (b" " * 131_072)),
    }
    await compare(cases, dataclasses.replace(SETTINGS, limits=limits))


async def test_a_short_batch_reads_no_more_than_it_may_either_way() -> None:
    settings = dataclasses.replace(SETTINGS, limits=Limits(answer_bytes_max=10))
    batch = post(b'[{"command": "SET k 123456"}, {"command": "GET k"}, {"command": "GET k"}]', path=b"/pipeline")
    await compare({"pipeline": batch}, settings)
    ((answer, _last),) = await answers_of(serve_door, [batch], settings)
    assert json.loads(answer[1])[2]["error"] == "too large"


async def test_f4_a_slow_body_is_answered_alike() -> None:
    """F4"""
    settings = dataclasses.replace(SETTINGS, body_timeout_s=0.05, linger_s=0.05)
    cases = {
        "short": post(PING.ljust(1000))[:-500],
        "chunks": chunked(b"13\r\n"),
        "refused": post(PING.ljust(1000), head=b"Host: evil.example\r\n")[:-500],
    }
    await compare(cases, settings)
