"""A client that speaks HTTP cannot tell the engines apart: the real process, with either behind it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.api.server.test_both_ways import BATCHES, COMMANDS, FIELDS
from tests.harness.process import Server
from tests.harness.waiting import WITHIN_S, wait_until

Seen = tuple[int, bytes, dict[bytes, str | None]]


KEYS = ("k", "q", "missing", "big", "{t}k", "{t}q", "{t}missing", "{t}big")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=WITHIN_S, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def example_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("example") / "data") as server:
        yield server


@pytest.fixture
def example(example_server: Server, server: Server) -> Server:
    """The embedded engine, whose answers are right by definition; both have none of the keys."""
    for each in (example_server, server):
        each.post({"command": "DELETE", "key": KEYS})
    return example_server


def ask(client: httpx.Client, server: Server, path: str, body: str) -> Seen:
    response = client.post(server.url + path, content=body.encode())
    return response.status_code, response.content, {name: response.headers.get(name.decode()) for name in FIELDS}


def with_tags(body: str) -> str:
    """A batch on keys of one slot, as a unit on a cluster needs."""
    return re.sub(r'(?<=[A-Z] )(?=[a-z])|(?<="key": ")', "{t}", body)


def waiters(server: Server) -> int:
    count: int = server.get("/stats")[1]["waiters"]
    return count


def test_commands_are_answered_alike(client: httpx.Client, server: Server, example: Server) -> None:
    for body in COMMANDS:
        assert ask(client, server, "/", body) == ask(client, example, "/", body), body[:200]


@pytest.mark.parametrize("path", ["/pipeline", "/multi"])
def test_batches_are_answered_alike(client: httpx.Client, server: Server, example: Server, path: str) -> None:
    for body in map(with_tags, BATCHES):
        assert ask(client, server, path, body) == ask(client, example, path, body), body[:200]


def test_a_value_that_is_no_text_is_answered_in_base64(server: Server) -> None:
    assert server.post({"command": r'SET binary "\xff\x00"'}) == (200, None)
    encoded = {"value": "/wA=", "encoding": "base64"}
    assert server.post({"command": "GET binary"}) == (200, encoded)
    assert server.post({"command": "GET", "key": "binary"}) == (200, {"success": True, "key": "binary", **encoded})
    assert server.post({"command": r'QPUSH line "\xff\x00" text'}) == (200, None)
    assert server.post({"command": "BQPOP line"}) == (200, encoded)
    assert server.post({"command": "BQPOP", "key": "line"}) == (200, {"success": True, "key": "line", "value": "text"})


def test_a_unit_on_keys_of_several_slots_says_what_to_do_about_it(client: httpx.Client, server: Server) -> None:
    response = client.post(server.url + "/multi", json=[{"command": "SET one 1"}, {"command": "SET two 2"}])
    if server.get("/readyz")[1].get("engine") != "redis cluster":
        assert (response.status_code, response.json()) == (200, [{}, {}])
    else:
        assert response.status_code == 400
        assert response.json()["error"] == "invalid command"
        assert "{" in response.json()["detail"], "it says what a hash tag is"
        assert server.post({"command": "EXISTS one two"}) == (200, {"value": 0})


def test_a_job_reaches_the_one_who_has_waited_longest(server: Server) -> None:
    with ThreadPoolExecutor(3) as pool:
        parked = []
        for count in range(1, 4):
            parked.append(pool.submit(server.post, {"command": "BQPOP", "key": "jobs"}))
            wait_until(lambda count=count: waiters(server) == count)  # type: ignore[misc]
        for number in range(3):
            assert server.post({"command": f"QPUSH jobs {number}"}) == (200, None)
        answers = [future.result() for future in parked]
    assert answers == [(200, {"success": True, "key": "jobs", "value": str(number)}) for number in range(3)]
    assert server.post({"command": "QLEN jobs"}) == (200, {"value": 0})


def test_values_are_kept_for_those_who_still_wait_when_others_have_gone(server: Server) -> None:
    """E2, I6"""
    body = b'{"command": "BQPOP crowd"}'
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    clients = [socket.create_connection((server.host, server.port)) for _ in range(200)]
    try:
        for client in clients:
            client.sendall(request)
        wait_until(lambda: waiters(server) == 200)
        for client in clients[::2]:
            client.close()
        wait_until(lambda: waiters(server) == 100)
        values = [str(number) for number in range(150)]
        assert server.post({"command": "QPUSH", "key": "crowd", "value": values}) == (
            *(200, {"success": True, "key": "crowd", "value": 150}),
        )
        answers = [read_value(client) for client in clients[1::2]]
        assert sorted(answers, key=int) == values[:100]
        assert server.post({"command": "QLEN crowd"}) == (200, {"value": 50})
    finally:
        for client in clients:
            client.close()


def read_value(client: socket.socket) -> str:
    """The value of an answer that comes in one piece or several."""
    client.settimeout(WITHIN_S)
    received = b""
    while (found := re.search(rb'{"value": "([^"]*)"}', received)) is None:
        part = client.recv(4096)
        assert part, received
        received += part
    return found[1].decode()


def test_those_who_wait_are_told_to_come_again_when_the_server_stops(
    client: httpx.Client, server: Server, tmp_path: Path
) -> None:
    """E8"""
    with Server(tmp_path / "other", engine=server.engine) as other, ThreadPoolExecutor(1) as pool:
        parked = pool.submit(ask, client, other, "/", '{"command": "BQPOP stopping"}')
        wait_until(lambda: waiters(other) == 1)
        other.stop()
        status, body, fields = parked.result()
    assert (status, fields[b"retry-after"]) == (503, "1")
    assert body == b'{"error": "unavailable", "detail": "shutting down"}'


def test_too_many_who_wait_are_told_to_come_again(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    with Server(tmp_path / "other", "--max-waiters", "1", engine=server.engine) as other, ThreadPoolExecutor(1) as pool:
        parked = pool.submit(other.post, {"command": "BQPOP seats"})
        wait_until(lambda: waiters(other) == 1)
        status, body, fields = ask(client, other, "/", '{"command": "BQPOP seats"}')
        assert (status, fields[b"retry-after"]) == (503, "1")
        assert body == b'{"error": "unavailable", "detail": "too many clients are waiting"}'
        ask(client, other, "/", '{"command": "QPUSH seats a"}')
        assert parked.result() == (200, {"value": "a"})
