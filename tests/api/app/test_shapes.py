"""Requests of any shape, right and wrong, from a client that shares no code with the product: by both ways into HTTP.

Whatever comes, each answer is well-formed HTTP with a JSON body or none, nothing is a defect (500), and the log stays
empty but for who was not let in.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from api.server.http import serve_door, serve_hypercorn
from tests.harness.effort import many
from tests.harness.http import Serve, Server, is_served, serving
from tests.harness.world import World

PING = b'{"command": "PING"}'

METHODS = ["POST", "POST", "GET", "HEAD"]
ODD_METHODS = [
    "PUT",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "BREW",
    "QUERY",
    "PRI",
    "get",
    "head",
    "pOST",
    "*1",
    "$4",
    "GE\tT",
    "",
]
PATHS = ["/", "/", "/livez", "/readyz", "/stats", "/pipeline", "/multi", "/checkpoint"]
ODD_PATHS = [
    *(
        "//",
        "/livez/",
        "*",
        "livez",
        "",
        "/%00",
        "/%ff",
        "/%2e%2e/",
        "/?a=b",
        "/livez?x",
        "/livez#x",
        "/\xff",
        "/get/a",
    ),
    *(
        "/%6civez",
        "http://localhost/livez",
        "http://h/",
        "https://localhost",
        "/livez;x",
        "/multi-exec",
        "/" + "a" * 9000,
    ),
]
VERSIONS = ["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2"]
ODD_VERSIONS = ["HTTP/1.9", "HTTP/2.0", "HTTP/0.9", "HTTP/1.10", "http/1.1", "", "HTTP/3", "HTTP/1.1 "]
FIELDS = [
    *("Host: localhost", "Host: evil.example", "Host:", "Host: a b", "Host: localhost:99999", "Connection: close"),
    *("Connection: keep-alive, Upgrade", "Upgrade: h2c", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    *("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "HTTP2-Settings: AAMAAABkAAQAAP__", "Expect: 100-continue"),
    *("Expect: x", "Content-Encoding: gzip", "Content-Encoding: identity", "Content-Type: text/html"),
    *("Content-Type: multipart/form-data; boundary=x", "Content-Type: application/x-www-form-urlencoded"),
    *("Content-Type: \xff", "Content-Length: 0", "Content-Length: 5", "Content-Length: 19", "Content-Length: -1"),
    *("Content-Length: 99999999999999999999", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked"),
    *("Transfer-Encoding:", "TE: trailers", "Origin: null", "Origin: https://localhost", "Sec-Fetch-Site: cross-site"),
    *("Authorization: Bearer x", "Authorization: Basic \xff", "Cookie: a=b; \x7f", "Accept: \x00", "X: y", ": y", "X"),
    *(" X: y", "X : y", "Range: bytes=0-", "If-None-Match: *", "Trailer: X", "X-Forwarded-Host: \x1b[31m"),
    *("Cookie: " + "a" * 4000, "Content-Length : 5"),
]
BODIES = [
    *(b"", PING, PING, b'{"command": "BQPOP q 0"}', b'[{"command": "PING"}]', b"13\r\n%b\r\n0\r\n\r\n" % PING),
    *(b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", b"zz\r\n", b"\r\n", b"\x1f\x8b\x08", b"{" * 100, b'["SET","k","v"]'),
    *(
        b"0\r\n\r\n",
        b"1;a\rb\r\nx\r\n0\r\n\r\n",
        b"1\r\nx\r\n0\r\nA: b\n\r\n",
        b"x" * 70_000,
        b'{"command": "\\ud800"}',
    ),
    *(b"\xff" * 10, b"--x\r\n\r\n"),
]
NO_HTTP = [
    *(
        b"*1\r\n$4\r\nPING\r\n",
        b"PING\r\n",
        b"\r\n",
        b"\r\n\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"\x00",
        b"\n",
        b"\r",
    ),
    *(b"GET\r\n\r\n", b"SSH-2.0-x\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04", bytes(range(256))),
]
SPLICES = [b"", b"\r", b"\n", b"\r\n", b"\x00", b" ", b"\t", b":", b"\xff"]

RESPONSE = re.compile(rb"HTTP/1\.1 (\d\d\d) [A-Z][A-Za-z -]*\r\n((?:[A-Za-z-]+: [^\r\n]*\r\n)*)\r\n")


def requests(lot: random.Random) -> bytes:
    """One request, or a few behind one another."""
    return b"".join(_request(lot) for _ in range(lot.choice([1, 1, 1, 2, 3])))


def _request(lot: random.Random) -> bytes:
    if lot.random() < 0.05:
        return lot.choice(NO_HTTP)
    words = [
        lot.choice(odd if lot.random() < 0.12 else usual)
        for usual, odd in ((METHODS, ODD_METHODS), (PATHS, ODD_PATHS), (VERSIONS, ODD_VERSIONS))
    ]
    fields = ["Host: localhost"] * (lot.random() < 0.95) + lot.sample(FIELDS, lot.choice([0, 0, 0, 1, 1, 2]))
    body = lot.choice(BODIES)
    if not any("ength" in field or "oding" in field for field in fields) and lot.random() < 0.9:
        fields.append(f"Content-Length: {len(body)}")
    data = "\r\n".join([" ".join(words), *fields, "", ""]).encode("latin-1") + body
    if lot.random() < 0.08:
        at = lot.randrange(len(data))
        data = data[:at] + lot.choice(SPLICES) + data[at + lot.randrange(3) :]
    return data


def statuses(received: bytes) -> Iterator[bytes]:
    """Takes apart what came; AssertionError when it is not well-formed. An answer to HEAD has no body."""
    while received:
        if received.startswith(b"-ERR this is HTTP"):
            yield b"redis"
            received = received.partition(b"\r\n")[2]
            continue
        match = RESPONSE.match(received)
        assert match, received[:200]
        yield match[1]
        received = received[match.end() :]
        length = re.search(rb"content-length: (\d+)\r\n", match[2])
        assert length or match[1] == b"100", match[0]
        body = received[: int(length[1])] if length else b""
        if body and not body.startswith((b"HTTP/1.1 ", b"-ERR")):
            json.loads(body)
            received = received[len(body) :]


async def talk(server: Server, data: bytes, lot: random.Random) -> bytes:
    """Sends bytes, in pieces now and then, and returns what has come when nothing more happens."""
    client = await server.connect()
    received = b""
    size = lot.choice([len(data), len(data), 1 + len(data) // 2, 1 + len(data) // 5])
    with contextlib.suppress(trio.BrokenResourceError, ConnectionError):
        for at in range(0, len(data), size):
            await client.send(data[at : at + size])
            await trio.testing.wait_all_tasks_blocked(0.001)
        with socket.fromfd(client.stream.socket.fileno(), socket.AF_INET, socket.SOCK_STREAM) as plain:
            while more := _what_is_there(plain):
                received += more
                await trio.testing.wait_all_tasks_blocked(0.001)
    client.reset()
    return received


def _what_is_there(client: socket.socket) -> bytes:
    try:
        return client.recv(1 << 20, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("serve", [serve_door, serve_hypercorn], ids=["door", "hypercorn"])
async def test_f11_f13_whatever_its_shape_a_request_gets_an_answer_and_no_line_in_the_log(
    nursery: trio.Nursery, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """F11, F13"""
    lot = random.Random(7)
    seen = Counter[bytes]()
    world = World(nursery)
    await world.start()
    async with serving(serve, real=world.engine) as server:
        for _ in range(many(150)):
            data = requests(lot)
            answered = list(statuses(await talk(server, data, lot)))
            assert b"500" not in answered, data
            seen.update(answered)
        await is_served(server)
    await world.kill()
    assert {record.name for record in caplog.records} <= {"holdfast.http.refused"}
    assert {b"200", b"400", b"404", b"405"} <= set(seen)
