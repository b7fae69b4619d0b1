"""The application without a server: ASGI messages in, ASGI messages out, virtual time.

`FakeEngine` is a fake at the seam `Face`: a few lines that answer at once, park pops, and note down
what they were asked, so that a test can say what was executed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from api.app.application import HttpApp, HttpSettings, create_app
from api.http import body as body_module
from api.http.access import Access
from engine.calls import Command
from engine.commands.server import Ping
from engine.limits import Limits
from engine.replies import Error, Failure, Reply, Value
from tests.harness.fake_engine import FakeEngine, FakeFront

SETTINGS = HttpSettings(Limits(), Access())
HOST = (b"host", b"localhost")

Message = dict[str, Any]


class Client:
    """One request, driven message by message."""

    def __init__(self, app: HttpApp, method: str, path: str, headers: list[tuple[bytes, bytes]], **scope: Any):
        self.sent: list[Message] = []
        self.done = trio.Event()
        self._app = app
        self._scope = {
            "type": "http",
            "http_version": "1.1",
            "asgi": {"version": "3.0"},
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 4711),
            "server": ("127.0.0.1", 8080),
            "extensions": {},
            **scope,
        }
        self._to_app, self._from_client = trio.open_memory_channel[Message](10)

    async def run(self) -> None:
        await self._app(self._scope, self._from_client.receive, self._send)  # type: ignore[arg-type]  # as Hypercorn does
        self.done.set()

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        await trio.lowlevel.checkpoint()

    async def body(self, data: bytes, *, more: bool = False) -> None:
        await self._to_app.send({"type": "http.request", "body": data, "more_body": more})

    async def leave(self) -> None:
        await self._to_app.send({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return {name.lower(): value for name, value in self.sent[0]["headers"]}

    @property
    def data(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class House:
    """An app over a fake engine, and ways to ask it."""

    def __init__(
        self, nursery: trio.Nursery, settings: HttpSettings = SETTINGS, engine: FakeFront | None = None
    ) -> None:
        self.engine = engine or FakeEngine()
        self.app = create_app(self.engine, settings)
        self._nursery = nursery

    def start(self, method: str, path: str, headers: list[tuple[bytes, bytes]] | None = None, **scope: Any) -> Client:
        client = Client(self.app, method, path, [HOST] if headers is None else headers, **scope)
        self._nursery.start_soon(client.run)
        return client

    def post(self, length: int | None, *more: tuple[bytes, bytes], path: str = "/", **scope: Any) -> Client:
        """Starts a POST whose body is still to come; `length` None is a chunked one."""
        framing = (b"transfer-encoding", b"chunked") if length is None else (b"content-length", b"%d" % length)
        return self.start("POST", path, [HOST, framing, *more], **scope)

    async def ask(self, command: str, *headers: tuple[bytes, bytes]) -> Client:
        return await self.send("/", {"command": command}, *headers)

    async def send(self, path: str, value: object, *headers: tuple[bytes, bytes]) -> Client:
        body = json.dumps(value).encode()
        client = self.post(len(body), *headers, path=path)
        await client.body(body)
        await client.done.wait()
        return client

    async def get(self, path: str, method: str = "GET", **scope: Any) -> Client:
        client = self.start(method, path, **scope)
        await client.body(b"")
        await client.done.wait()
        return client


@pytest.fixture
def house(nursery: trio.Nursery) -> House:
    """In real time; a test that passes time asks for `autojump_clock` itself, which is when it has effect."""
    return House(nursery)


async def test_a_command_is_answered_in_json(house: House) -> None:
    answer = await house.ask("PING")
    assert (answer.status, answer.data) == (200, b'{"value": "PONG"}')
    assert answer.headers[b"content-type"] == b"application/json"
    assert answer.headers[b"content-length"] == b"17"
    assert b"connection" not in answer.headers


async def test_an_empty_answer_says_so_and_has_no_type(house: House) -> None:
    answer = await house.ask("SET k v")
    assert (answer.status, answer.data) == (200, b"")
    assert answer.headers[b"content-length"] == b"0"
    assert b"content-type" not in answer.headers


async def test_the_fields_dialect_is_answered_in_kind(house: House) -> None:
    body = b'{"command": "GET", "key": "k"}'
    client = house.post(len(body))
    await client.body(body)
    await client.done.wait()
    assert client.status == 404
    assert client.json == {"success": False, "message": "key not found", "key": "k"}


@pytest.mark.parametrize("path", ["/pipeline", "/multi"])
async def test_a_batch_is_answered_with_a_list(house: House, path: str) -> None:
    answer = await house.send(path, [{"command": "SET k v"}, {"command": "GET", "key": "k"}])
    assert (answer.status, answer.json) == (200, [{}, {"success": True, "key": "k", "value": "v"}])
    assert answer.headers[b"content-type"] == b"application/json"
    assert (await house.send(path, [])).data == b"[]"
    refused = await house.send(path, {"command": "PING"})
    assert (refused.status, refused.json["error"]) == (400, "invalid request")


@pytest.mark.parametrize("path", ["/pipeline", "/multi"])
async def test_f9_a_page_of_another_origin_sends_no_batch(house: House, autojump_clock: MockClock, path: str) -> None:
    page = await house.send(path, [{"command": "SET k v"}], (b"origin", b"http://evil.example"))
    assert (page.status, page.json["error"]) == (403, "forbidden")
    assert house.engine.commands == []


async def test_f6_a_batch_is_held_to_the_limits_of_bodies(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    limits = Limits(body_bytes_max=100_000, bodies_bytes_max=50_000)
    house = House(nursery, dataclasses.replace(SETTINGS, limits=limits))
    for size, status in [(100_000, 413), (60_000, 503), (10_000, 200)]:
        answer = await house.send("/pipeline", [{"command": "SET k " + "v" * size}])
        assert answer.status == status
        assert house.app.service.budget.left == limits.bodies_bytes_max
    many = await house.send("/pipeline", [{"command": "PING"}] * 100)
    assert (many.status, many.headers[b"retry-after"]) == (503, b"1")


@pytest.mark.parametrize("content_type", [b"application/x-www-form-urlencoded", b"text/plain", b"x"])
async def test_a_body_is_parsed_whatever_its_type_says(house: House, content_type: bytes) -> None:
    assert (await house.ask("PING", (b"content-type", content_type))).status == 200


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"{", 400, "invalid request"),
        (b"", 400, "invalid request"),
        (b"\xff", 400, "invalid request"),
        (b'{"command": "NOPE"}', 400, "invalid command"),
        (b'{"command": "SET k"}', 400, "invalid command"),
        (b'{"command": "GET ' + b"k" * 5000 + b'"}', 413, "too large"),
    ],
)
async def test_what_is_no_command_runs_nothing(house: House, body: bytes, status: int, error: str) -> None:
    client = house.post(len(body))
    await client.body(body)
    await client.done.wait()
    assert (client.status, client.json["error"]) == (status, error)
    assert house.engine.commands == []


async def test_f8_unknown_paths_and_methods_are_refused_in_json(house: House) -> None:
    for path in ("/nix", "/livez/", "//livez", "/static/x", "/pipeline/", "/multi/x"):
        answer = await house.get(path)
        assert (answer.status, answer.json["error"]) == (404, "not found")
    for path, method, allowed in [
        ("/", "GET", b"POST"),
        ("/", "OPTIONS", b"POST"),
        ("/stats", "POST", b"GET, HEAD"),
        ("/pipeline", "GET", b"POST"),
        ("/multi", "PUT", b"POST"),
    ]:
        answer = await house.get(path, method)
        assert (answer.status, answer.json["error"]) == (405, "method not allowed")
        assert answer.headers[b"allow"] == allowed


async def test_f10_head_is_answered_where_get_is(house: House) -> None:
    answer = await house.get("/readyz", "HEAD")
    assert (answer.status, answer.headers[b"content-length"]) == (200, b"38")


async def test_readiness_names_the_fsync_policy_and_ends_with_the_shutdown(house: House) -> None:
    ready = await house.get("/readyz")
    assert (ready.status, ready.json) == (200, {"status": "ready", "fsync": "always"})
    house.engine.accepting = False
    gone = await house.get("/readyz")
    assert (gone.status, gone.json["error"]) == (503, "unavailable")
    assert gone.headers[b"retry-after"] == b"1"
    assert (await house.get("/livez")).status == 200


async def test_readiness_is_what_the_engine_says_in_force_or_why_not(house: House) -> None:
    house.engine.ready = {"engine": "redis cluster", "masters": 3}
    assert (await house.get("/readyz")).json == {"status": "ready", "engine": "redis cluster", "masters": 3}
    house.engine.ready = {"status": "degraded", "detail": "the disk is full", "fsync": "always"}
    full = await house.get("/readyz")
    assert (full.status, full.json) == (200, {"status": "degraded", "detail": "the disk is full", "fsync": "always"})
    house.engine.ready = Failure(Error.UNAVAILABLE, "redis is away")
    gone = await house.get("/readyz")
    assert (gone.status, gone.json) == (503, {"error": "unavailable", "detail": "redis is away"})


async def test_a_checkpoint_is_for_engines_with_a_log_and_no_path_elsewhere(
    house: House, nursery: trio.Nursery
) -> None:
    done = await house.send("/checkpoint", None)
    assert (done.status, done.json["folded_bytes"]) == (200, 3000)
    front = House(nursery, engine=FakeFront())
    unknown = await front.send("/checkpoint", None)
    assert (unknown.status, unknown.json["error"]) == (404, "not found")


async def test_statistics_are_one_flat_object_of_numbers(house: House) -> None:
    members = (await house.get("/stats")).json
    assert members["requests_open"] == 1
    assert {"waiters", "commit_p50_ms", "connections"} <= members.keys()
    assert all(isinstance(value, int | float) for value in members.values())


async def test_f13_a_defect_is_logged_and_not_shown(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "holdfast.http"):
        answer = await house.ask("TTL k")
    assert (answer.status, answer.json) == (500, {"error": "internal error"})
    assert "a defect with a secret in it" in caplog.text
    assert (await house.ask("PING")).status == 200


async def test_f13_a_defect_of_a_handler_is_no_different(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.engine, "statistics", lambda: 1 // 0)
    with caplog.at_level(logging.ERROR, "holdfast.http"):
        answer = await house.get("/stats")
    assert (answer.status, answer.json) == (500, {"error": "internal error"})
    assert "ZeroDivisionError" in caplog.text


async def test_f9_the_token_the_origin_and_the_host_are_checked(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    house = House(nursery, dataclasses.replace(SETTINGS, access=Access(token="t")))
    nobody = await house.ask("PING")
    assert (nobody.status, nobody.json["error"]) == (401, "unauthorized")
    assert nobody.headers[b"www-authenticate"] == b"Bearer"
    token = (b"authorization", b"Bearer t")
    page = await house.ask("PING", token, (b"origin", b"http://evil.example"))
    assert (page.status, page.json["error"]) == (403, "forbidden")
    assert (await house.ask("PING", token)).status == 200
    assert (await house.get("/readyz")).status == 200
    assert (await house.get("/stats")).status == 401
    assert house.engine.commands == [Ping()]


@pytest.mark.parametrize(
    ("headers", "scope", "status"),
    [
        ([HOST, (b"content-length", b"2"), (b"transfer-encoding", b"chunked")], {}, 400),
        ([HOST, (b"transfer-encoding", b"chunked")], {"http_version": "1.0"}, 400),
        ([HOST, (b"content-length", b"2"), (b"content-length", b"2")], {}, 400),
        ([HOST, (b"content-length", b"-2")], {}, 400),
        ([HOST, HOST], {}, 400),
        ([], {}, 400),
        ([HOST], {"http_version": "2"}, 400),
        ([HOST], {"path": "livez"}, 400),
        ([HOST], {"path": ""}, 400),
        ([HOST], {"path": "http://evil.example/"}, 400),
        ([HOST] + [(b"a", b"b")] * 100, {}, 431),
        ([HOST, (b"a", b"b" * 16384)], {}, 431),
        ([HOST], {"path": "/" + "a" * 8192}, 414),
        ([HOST], {"query_string": b"a" * 8192}, 414),
    ],
)
async def test_f1_f3_a_head_not_to_be_trusted_runs_nothing_and_closes(
    house: House, headers: list[tuple[bytes, bytes]], scope: dict[str, Any], status: int
) -> None:
    client = house.start("POST", scope.pop("path", "/"), headers, **scope)
    await client.body(b'{"command": "PING"}')
    await client.done.wait()
    assert client.status == status
    assert client.headers[b"connection"] == b"close"
    assert set(client.json) == {"error", "detail"}
    assert house.engine.commands == []


async def test_an_absolute_target_is_routed_when_it_names_this_host(house: House) -> None:
    assert (await house.get("http://localhost/livez")).status == 200
    assert (await house.get("http://localhost")).status == 405


async def test_f6_a_body_over_its_limit_is_refused_before_a_byte_of_it_is_read(
    house: House, autojump_clock: MockClock
) -> None:
    client = house.post(SETTINGS.limits.body_bytes_max + 1)
    await wait_all_tasks_blocked(0.001)
    assert (client.status, client.json["error"]) == (413, "too large")
    assert client.headers[b"connection"] == b"close"
    assert not client.done.is_set()  # the rest is being thrown away
    await client.body(b"x" * 65536, more=True)
    await client.done.wait()


async def test_f6_a_chunked_body_is_refused_where_it_passes_the_limit(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    house = House(nursery, dataclasses.replace(SETTINGS, limits=Limits(body_bytes_max=1000)))
    client = house.post(None)
    await client.body(b"x" * 1000, more=True)
    await wait_all_tasks_blocked()
    assert client.sent == []
    await client.body(b"x", more=True)
    await client.body(b"x" * 100)
    await client.done.wait()
    assert client.status == 413
    assert house.app.service.budget.left == Limits().bodies_bytes_max


async def test_f6_all_bodies_share_one_budget(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "FREE_BODY_BYTES", 0)
    house = House(nursery, dataclasses.replace(SETTINGS, limits=Limits(bodies_bytes_max=100)))
    slow = house.post(95)
    await slow.body(b" " * 90, more=True)
    await wait_all_tasks_blocked()
    refused = await house.ask("PING")
    assert (refused.status, refused.json["error"]) == (503, "unavailable")
    assert refused.headers[b"retry-after"] == b"1"
    await slow.leave()
    await slow.done.wait()
    assert house.app.service.budget.left == 100
    assert (await house.ask("PING")).status == 200


async def test_f6_a_body_that_is_refused_gives_its_share_back_before_its_client_has_the_answer(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "FREE_BODY_BYTES", 0)
    house = House(nursery, dataclasses.replace(SETTINGS, limits=Limits(bodies_bytes_max=192)))
    clients = [house.post(64) for _ in range(4)]
    for _ in range(7):
        for client in clients:
            await client.body(b" " * 8, more=True)
            await wait_all_tasks_blocked()
    await trio.sleep(2)  # the answer waits a moment for the rest of a small body
    refused = [client for client in clients if client.sent]
    assert [client.status for client in refused] == [503]


async def test_f6_bodies_that_were_announced_and_do_not_come_shut_nobody_out(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    house = House(nursery, dataclasses.replace(SETTINGS, limits=Limits(bodies_bytes_max=100)))
    silent = [house.post(90) for _ in range(16)]
    await wait_all_tasks_blocked()
    assert (await house.ask("PING")).status == 200
    for client in silent:
        await client.leave()
        await client.done.wait()


async def test_a_chunked_body_takes_from_the_budget_as_it_comes(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "FREE_BODY_BYTES", 0)
    house = House(nursery, dataclasses.replace(SETTINGS, limits=Limits(bodies_bytes_max=100)))
    client = house.post(None)
    await client.body(b"x" * 60, more=True)
    await wait_all_tasks_blocked()
    assert house.app.service.budget.left == 40
    await client.body(b"x" * 60, more=True)
    await client.done.wait()
    assert client.status == 503
    assert house.app.service.budget.left == 100


async def test_a_parked_request_holds_no_body(house: House) -> None:
    body = b'{"command": "BQPOP q"}' + b" " * 400
    client = house.post(len(body))
    await client.body(body)
    await wait_all_tasks_blocked()
    assert house.engine.statistics().waiters == 1
    assert house.app.service.budget.left == Limits().bodies_bytes_max
    await house.ask("QPUSH q v")
    await client.done.wait()
    assert client.json == {"value": "v"}


async def test_a_long_body_is_parsed_in_a_thread(house: House) -> None:
    value = "v" * 200_000
    assert (await house.ask(f"SET k {value}")).status == 200
    assert (await house.ask("GET k")).json == {"value": value}


async def test_f4_a_body_that_does_not_come_is_answered_408(house: House, autojump_clock: MockClock) -> None:
    client = house.post(10)
    await client.body(b"{", more=True)
    began = trio.current_time()
    await client.done.wait()
    assert (client.status, client.json["error"]) == (408, "request timeout")
    assert 60 <= trio.current_time() - began <= 62
    assert house.app.service.budget.left == Limits().bodies_bytes_max


async def test_a_parked_pop_has_no_deadline(house: House, autojump_clock: MockClock) -> None:
    body = b'{"command": "BQPOP q"}'
    client = house.post(len(body))
    await client.body(body)
    await trio.sleep(80_000)
    assert client.sent == []
    await client.leave()
    await client.done.wait()


async def test_e1_a_client_that_leaves_amid_its_body_ran_nothing(house: House) -> None:
    client = house.post(30)
    await client.body(b'{"command": "PI', more=True)
    await client.leave()
    await client.done.wait()
    assert house.engine.commands == []
    assert client.sent == []


async def test_e2_a_client_that_leaves_withdraws_its_pop(house: House) -> None:
    body = b'{"command": "BQPOP q"}'
    client = house.post(len(body))
    await client.body(body)
    await wait_all_tasks_blocked()
    await client.leave()
    await client.done.wait()
    assert house.engine.withdrawn == [b"q"]
    assert client.sent == []
    assert house.app.requests_open == 0


async def test_e5_an_answer_that_was_given_is_handed_over_before_anything_else_runs(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    async def submit(_command: Command) -> Reply:
        with trio.CancelScope(shield=True):
            await client.leave()
            await wait_all_tasks_blocked()  # the disconnect is known, the cancellation is pending
        trio.lowlevel.current_trio_token().run_sync_soon(steps.append, "another task ran")
        steps.append("submit returned")
        return Value(b"v")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            steps.append("handed over")
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(house.engine, "submit", submit)
    client = house.post(19)
    monkeypatch.setattr(client, "_send", send)
    await client.body(b'{"command": "PING"}')
    await client.done.wait()
    assert steps[:2] == ["submit returned", "handed over"]


async def test_an_early_answer_waits_for_a_small_body_and_keeps_the_connection(house: House) -> None:
    client = house.start("POST", "/nix", [HOST, (b"content-length", b"4")])
    await wait_all_tasks_blocked(0.001)
    assert client.sent == []
    await client.body(b"1234")
    await client.done.wait()
    assert client.status == 404
    assert b"connection" not in client.headers


async def test_an_early_answer_does_not_wait_for_ever(house: House, autojump_clock: MockClock) -> None:
    client = house.start("POST", "/nix", [HOST, (b"content-length", b"4")])
    began = trio.current_time()
    await client.done.wait()
    assert client.status == 404
    assert client.headers[b"connection"] == b"close"
    assert trio.current_time() - began <= 2.1


async def test_an_early_answer_throws_away_no_more_than_a_body_may_have(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    settings = dataclasses.replace(SETTINGS, limits=Limits(body_bytes_max=1000), linger_s=1e6)
    house = House(nursery, settings)
    client = house.post(None)
    for _ in range(5):
        await client.body(b"x" * 900, more=True)
    began = trio.current_time()
    await client.done.wait()
    assert client.status == 413
    assert trio.current_time() - began < 1
