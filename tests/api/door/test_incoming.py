"""What is read (api/door/incoming.py): bodies and their share of the budget. Heads are in test_request.py."""

from __future__ import annotations

import dataclasses

import pytest

from api.server.http import serve_door
from engine.limits import Limits
from tests.harness.http import HOST, PING, SETTINGS, Server, chunked, http, is_served, post, serving, until

_BUDGET = 1_000_000
_LARGE = PING.ljust(300_000)

ENDS = {
    "answered": (post(_LARGE), 200),
    "answered to chunks": (chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LARGE), _LARGE)), 200),
    "bad JSON": (post(b"{" + _LARGE), 400),
    "relayed": (post(_LARGE, path=b"/checkpoint"), 200),
    "refused": (post(_LARGE, path=b"/nothing"), 404),
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


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        (b"POST /nothing", [], 404),
        (b"PUT /", [], 405),
        (b"POST /livez", [], 405),
        (b"POST /", [b"Content-Encoding: gzip"], 415),
        (b"POST /", [b"Origin: null"], 403),
        (b"POST /", [b"Content-Length: 99999999"], 413),
    ],
)
async def test_f10_who_waits_for_100_continue_gets_the_refusal_instead(
    server: Server, line: bytes, fields: list[bytes], status: int
) -> None:
    """F10: and the connection ends, for nobody can tell whether the body will be sent."""
    length = [] if any(b"Length" in field for field in fields) else [b"Content-Length: 19"]
    client = await server.connect()
    await client.send(http(line, b"Expect: 100-continue", *length, *fields))
    (answer,) = await client.read_to_end()
    assert (answer.status, answer.headers[b"connection"]) == (status, b"close")


async def test_f10_who_waits_for_100_continue_behind_empty_lines_gets_it(server: Server) -> None:
    """F10"""
    client = await server.connect()
    await client.send(b"\r\n" + post(PING, head=HOST + b"Expect: 100-continue\r\n").removesuffix(PING))
    assert (await client.answer()).status == 100
    await client.send(PING + b"\r\n")
    assert (await client.answer()).json == {"value": "PONG"}
    await client.send(post(PING))
    assert (await client.answer()).json == {"value": "PONG"}
