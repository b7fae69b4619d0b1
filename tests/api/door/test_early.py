"""Clients that come before there is an engine: probes are answered, everything else waits for the start (H4)."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest
import trio

from api.app.application import HttpSettings, create_app
from api.http.access import Access
from api.http.probes import Probes
from api.http.service import Service
from api.server.http import ByDoor
from engine.replies import Error, Failure
from tests.api.door.stand import GET_LIVEZ, GET_STATS
from tests.harness.fake_engine import FakeEngine
from tests.harness.http import PARK, PING, SETTINGS, Client, http, listen, post, until

GET_READYZ = http(b"GET /readyz")


class Starting:
    """A door whose engine is still to come.

    Attributes:
        engine: what comes when it is opened.
        stopped: set when it has stopped serving.
    """

    def __init__(self, nursery: trio.Nursery, settings: HttpSettings = SETTINGS) -> None:
        self.engine = FakeEngine()
        self.stopped = trio.Event()
        self.service = Service(None, settings.limits)
        self.probes = Probes(lambda: Failure(Error.UNAVAILABLE, "replaying the log: 5% of 10 MB"))
        self._settings = settings
        self._nursery = nursery
        self._listener = listen()
        self._address = self._listener.getsockname()
        self._way = ByDoor(self.service, self.probes, settings, [self._listener])
        self._stop = trio.Event()
        self._clients: list[Client] = []

    async def start(self) -> None:
        async def run(task_status: trio.TaskStatus[None]) -> None:
            await self._way.serve(self._stop.wait, task_status)
            self.stopped.set()

        await self._nursery.start(run)

    async def open(self) -> None:
        self.service.engine = self.engine
        self.probes.readiness = self.engine.readiness
        await self._way.open(create_app(self.engine, self._settings, self.service))

    def stop(self) -> None:
        self._stop.set()

    async def connect(self) -> Client:
        connection = trio.socket.socket()
        await connection.connect(self._address)
        client = Client(trio.SocketStream(connection))
        self._clients.append(client)
        return client

    def hang_up(self) -> None:
        for client in self._clients:
            client.stream.socket.close()
        self._nursery.cancel_scope.cancel()

    async def ask(self, data: bytes) -> tuple[int, object]:
        client = await self.connect()
        await client.send(data)
        answer = await client.answer()
        return answer.status, answer.json


@pytest.fixture
async def starting(nursery: trio.Nursery, patience: None) -> AsyncIterator[Starting]:
    starting = Starting(nursery)
    await starting.start()
    yield starting
    starting.hang_up()


def held(starting: Starting) -> int:
    return starting.service.limits.bodies_bytes_max - starting.service.budget.left


async def test_probes_are_answered_before_there_is_an_engine(starting: Starting) -> None:
    assert await starting.ask(GET_LIVEZ) == (200, {"status": "alive"})
    assert await starting.ask(GET_READYZ) == (
        503,
        {"error": "unavailable", "detail": "replaying the log: 5% of 10 MB"},
    )
    client = await starting.connect()
    await client.send(http(b"HEAD /readyz") + GET_LIVEZ)
    assert (await client.answer(to_head=True)).status == 503
    assert (await client.answer()).status == 200
    await starting.open()
    assert await starting.ask(GET_READYZ) == (200, {"status": "ready", "fsync": "always"})


async def test_what_came_early_is_done_in_its_order_when_there_is_an_engine(starting: Starting) -> None:
    clients = []
    for number in range(300):
        client = await starting.connect()
        await client.send(post(b'{"command": "QPUSH q %d"}' % number) + post(PING))
        clients.append(client)
        if number % 60 == 0:
            await starting.ask(GET_LIVEZ)  # what was sent before is read before
    application, waiter = await starting.connect(), await starting.connect()
    await application.send(GET_STATS)
    await waiter.send(post(b"[%b]" % PING, path=b"/pipeline") + post(PARK))
    await starting.ask(GET_LIVEZ)
    assert starting.engine.commands == []
    await starting.open()
    for client in clients:
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
    assert (await application.answer()).json["requests_open"] >= 1
    assert (await waiter.answer()).json == [{"value": "PONG"}]
    assert (await waiter.answer()).json == {"value": "0"}
    assert await starting.ask(post(PING)) == (200, {"value": "PONG"})


async def test_a_client_that_leaves_early_is_not_served(starting: Starting) -> None:
    client = await starting.connect()
    await client.send(post(b'{"command": "SET k %b"}' % (b"x" * 40_000)))
    await until(lambda: held(starting) > 0)
    client.reset()
    await until(lambda: held(starting) == 0)
    await starting.open()
    assert await starting.ask(post(PING)) == (200, {"value": "PONG"})
    assert len(starting.engine.commands) == 1


async def test_bodies_that_wait_for_the_start_have_the_budget_of_all_bodies(nursery: trio.Nursery) -> None:
    limits = dataclasses.replace(SETTINGS.limits, bodies_bytes_max=100_000)
    starting = Starting(nursery, dataclasses.replace(SETTINGS, limits=limits))
    await starting.start()
    body = post(b'{"command": "SET k %b"}' % (b"x" * 40_000))
    waiting = [await starting.connect() for _ in range(2)]
    for client in waiting:
        await client.send(body)
    await until(lambda: held(starting) > 80_000)
    assert (await starting.ask(body))[0] == 503
    await starting.open()
    assert [(await client.answer()).status for client in waiting] == [200, 200]
    assert held(starting) == 0
    starting.hang_up()


async def test_who_may_not_speak_to_the_server_is_told_before_it_has_started(nursery: trio.Nursery) -> None:
    starting = Starting(nursery, dataclasses.replace(SETTINGS, access=Access(token="secret")))
    await starting.start()
    assert (await starting.ask(post(PING)))[0] == 401
    assert (await starting.ask(http(b"GET /livez", host=b"Host: evil.example\r\n")))[0] == 403
    assert (await starting.ask(GET_LIVEZ))[0] == 200
    starting.hang_up()


async def test_a_server_that_stops_before_it_has_started_answers_503_to_all_who_wait(starting: Starting) -> None:
    """H1"""
    waiting = [await starting.connect() for _ in range(3)]
    for client, data in zip(waiting, (post(PING), post(PARK), GET_STATS), strict=True):
        await client.send(data)
    idle = await starting.connect()
    await starting.ask(GET_LIVEZ)
    starting.stop()
    for client in waiting:
        (answer,) = await client.read_to_end()
        assert (answer.status, answer.json) == (503, {"error": "unavailable", "detail": "shutting down"})
        assert answer.headers[b"connection"] == b"close"
        await client.stream.aclose()
    assert await idle.ended()
    with trio.fail_after(60):
        await starting.stopped.wait()
