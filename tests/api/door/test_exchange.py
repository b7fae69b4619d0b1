"""One request (api/door/exchange.py): defects, and what was popped for a client that does not get it."""

from __future__ import annotations

from types import ModuleType
from typing import NoReturn

import pytest

from api.dialects import answers, batches, bodies
from api.door.relay import Relay
from tests.api.door.stand import COMMIT_S, GET_STATS, MIB, Stand, defect, line
from tests.harness.fake_engine import FakeEngine
from tests.harness.http import PING, Server, http, is_served, post, until

# Defects: F13


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
    requests = (post(PING), post(b"[%b]" % PING, path=b"/pipeline"), post(PING.ljust(100_000)), GET_STATS)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, defect)
        await client.send(b"".join(requests))
        answers = [await client.answer() for _ in requests]
    failed = [answer for answer in answers if answer.status != 200]
    assert failed
    assert {(answer.status, answer.body) for answer in failed} == {(500, b'{"error": "internal error"}')}
    assert caplog.text.count("ZeroDivisionError: a defect") == len(failed)
    await client.send(post(PING))
    assert (await client.answer()).status == 200


async def test_a_defect_on_the_way_of_a_head_request_has_no_body(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connect()
    with monkeypatch.context() as patch:
        patch.setattr(Relay, "request", defect)
        await client.send(http(b"HEAD /stats"))
        assert (await client.answer(to_head=True)).status == 500
    await client.send(post(PING))
    assert (await client.answer()).json == {"value": "PONG"}


# Who leaves: E5


async def test_a_client_that_leaves_while_its_bad_body_is_parsed_costs_nothing(server: Server) -> None:
    client = await server.connect()
    await client.send(post(b"[" + b"1, " * 2_000_000))
    await until(lambda: server.app.traffic()["requests_open"] == 1)
    client.reset()
    await until(lambda: server.connections_open == 0)
    await is_served(server)


@pytest.mark.parametrize("half", [False, True], ids=["reset", "half-close"])
async def test_e5_a_popped_value_goes_back_when_its_client_leaves_before_it_is_on_disk(
    stand: Stand, half: bool
) -> None:
    """E5: to the head, in the old order; and the one who waits next gets it."""
    await stand.run("QPUSH q a b c")
    leaver, other = await stand.connect(), await stand.connect()
    await leaver.send(line("BQPOP q") + line("BQPOP q"))
    await stand.values_are(b"b", b"c")
    if half:
        await leaver.stream.send_eof()
    else:
        leaver.reset()
    await stand.values_are(b"a", b"b", b"c")
    await other.send(line("BQPOP q"))
    await stand.pass_time(COMMIT_S * 3)
    assert (await other.answer()).json == {"value": "a"}


@pytest.mark.parametrize("place", [answers, batches], ids=["command", "batch"])
async def test_e5_f13_a_popped_value_that_a_defect_keeps_from_its_client_goes_back(
    stand: Stand, place: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5, F13"""

    def fail(*_: object) -> NoReturn:
        raise ZeroDivisionError

    await stand.run("QPUSH q a b")
    client = await stand.connect()
    with monkeypatch.context() as patch:
        patch.setattr(place, "answer", fail)
        pop = b'{"command": "BQPOP q"}'
        await client.send(post(pop) if place is answers else post(b"[%b]" % pop, path=b"/multi"))
        await stand.values_are(b"b")
        await stand.pass_time(COMMIT_S)
        assert (await client.answer()).status == 500
    await stand.values_are(b"a", b"b")


@pytest.mark.parametrize("path", [b"/pipeline", b"/multi"])
@pytest.mark.parametrize("values", [["a", "b", "c"], ["a" * 200_000, "b" * 200_000, "c"]])
@pytest.mark.parametrize("commands", [3, 600])
async def test_e5_so_they_do_when_a_task_has_made_that_answer(
    stand: Stand, path: bytes, values: list[str], commands: int
) -> None:
    """E5: for the body or the answer is long."""
    await stand.run("SET big " + "x" * MIB, *(f"QPUSH q {value}" for value in values))
    client = await stand.connect()
    pops = post(b"[%b]" % b",".join([b'{"command":"BQPOP q"}'] * commands), path=path)
    await client.send(line("GET big") + pops)
    await stand.values_are()
    for _ in range(3):
        await stand.pass_time(COMMIT_S)
    client.reset()
    await stand.values_are(*(value.encode() for value in values))
