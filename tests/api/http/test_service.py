"""The service over the real engine on a fake disk: bodies in, answers out, under virtual time."""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from api.dialects import batches
from api.dialects.answers import Answer
from api.http import service
from api.http.body import FREE_BODY_BYTES, HeldBody
from api.http.service import COMMAND, MULTI, PIPELINE, Service
from engine.limits import KIB, Limits
from engine.replies import Integer, Value
from tests.harness.fake_engine import FakeEngine
from tests.harness.http import until
from tests.harness.world import World

Elements = list[dict[str, object]]


def lines(*commands: str) -> Elements:
    return [{"command": command} for command in commands]


class Client:
    """One who sends bodies to the service of a world."""

    def __init__(self, world: World, limits: Limits | None = None) -> None:
        self.service = Service(world.engine, limits or world.limits)
        self.answer: Answer | None = None
        self.done = trio.Event()
        self.scope = trio.CancelScope()

    async def send(self, path: str, value: object) -> Answer:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.body = body = HeldBody(data)
        assert body.hold(self.service.budget, len(data))
        self.scope = trio.CancelScope()
        with self.scope:
            self.answer = await self.service.answer(path, body)
        assert self.service.budget.left == self.service.limits.bodies_bytes_max
        assert body.data == b""
        self.done.set()
        return self.answer or Answer(0, b"")

    async def ask(self, path: str, value: object) -> Any:
        answer = await self.send(path, value)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)


@pytest.fixture
def client(world: World) -> Client:
    return Client(world)


async def test_a_command_is_answered_and_one_that_waits_holds_no_body(client: Client, nursery: trio.Nursery) -> None:
    assert await client.send(COMMAND, {"command": "SET k v"}) == Answer(200, b"")
    assert await client.send(COMMAND, {"command": "GET k"}) == Answer(200, b'{"value": "v"}')
    assert (await client.send(COMMAND, b"{")).status == 400
    body = HeldBody(b'{"command": "BQPOP q"}' + b" " * 400)
    nursery.start_soon(client.service.answer, COMMAND, body)
    await trio.testing.wait_all_tasks_blocked()
    assert body.data == b""


async def test_a_pipeline_runs_in_order_and_a_bad_command_does_not_disturb_the_rest(client: Client) -> None:
    found = await client.ask(
        PIPELINE,
        [
            *lines("SET k 1", "SET k 2 NX", "NOPE", "QPUSH k v", "GET k"),
            {"command": "QPUSH", "key": "q", "value": ["a", "b"]},
            *lines("BQPOP q", "QPOP q", "BQPOP q 60", "QPOP q"),
        ],
    )
    assert [one.get("error") for one in found[1:4]] == ["key already exists", "invalid command", "wrong type"]
    assert [found[0], *found[4:]] == [
        {},
        {"value": "1"},
        {"success": True, "key": "q", "value": 2},
        {"value": "a"},
        {"value": "b"},
        {"value": None},
        {"error": "queue is empty"},
    ]


async def test_a_unit_is_done_whole(client: Client, world: World) -> None:
    found = await client.ask(MULTI, lines("SET k 1 NX", "GET k", "GET missing", "DEL k", "GET k"))
    missing = {"error": "key not found"}
    assert found == [{}, {"value": "1"}, missing, {"value": 1}, missing]
    assert await client.ask(MULTI, []) == await client.ask(PIPELINE, []) == []


@pytest.mark.parametrize(
    ("bad", "status", "error"),
    [("SET k 2 NX", 409, "key already exists"), ("QPUSH k", 400, "invalid command"), ("DEL x", 404, "key not found")],
)
async def test_a_unit_with_a_bad_command_changes_nothing(
    client: Client, world: World, bad: str, status: int, error: str
) -> None:
    await world.do("SET k 1")
    answer = await client.send(MULTI, lines("SET k 3", "QPUSH q v", bad, "SET j 1"))
    members = json.loads(answer.body)
    assert (answer.status, members["error"], members["index"]) == (status, error, 2)
    assert members["detail"].startswith("command 3: ")
    assert await world.do("GET k") == Value(b"1")
    assert await world.do("EXISTS q j") == Integer(0)


async def test_the_longest_pipeline_is_answered_in_slices_and_others_are_served_meanwhile(
    client: Client, world: World
) -> None:
    count = world.limits.batch_commands_max
    others = [await world.park("BQPOP turn") for _ in range(3)]
    elements = [{"command": f"SET key:{number} v"} for number in range(count - 1)]
    found = await client.ask(PIPELINE, [*elements[:-3], *lines("QPUSH turn a b c"), *elements[-3:]])
    assert found == [{}] * count
    assert [await job.wait() for job in others] == [Value(b"a"), Value(b"b"), Value(b"c")]
    assert len(world.state) == count
    answer = await client.send(PIPELINE, [*elements, *lines("PING", "PING")])
    assert (answer.status, json.loads(answer.body)["error"]) == (413, "too large")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what is encoded before others have their turn."""
    found: list[int] = []
    encode = batches.encode

    def noting(*arguments: Any) -> Iterator[bytes]:
        for one in encode(*arguments):
            found.append(len(one))
            yield one

    monkeypatch.setattr(batches, "encode", noting)
    return found


async def test_a_long_batch_is_freed_in_pieces(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    class Freed(list[Any]):
        def __delitem__(self, part: Any) -> None:
            lengths.append(len(self))
            super().__delitem__(part)

    parse = batches.parse

    def parsing(*arguments: Any, **named: Any) -> batches.BatchRequest:
        batch = parse(*arguments, **named)
        batch.commands = Freed(batch.commands)
        return batch

    monkeypatch.setattr(batches, "parse", parsing)
    assert len(await client.ask(PIPELINE, lines(*["PING"] * 10_000))) == 10_000
    assert lengths == [10_000, 5904, 1808]


async def test_long_values_are_answered_a_slice_each_and_only_so_many_are_read(world: World, steps: list[int]) -> None:
    client = Client(world, Limits(answer_bytes_max=1000 * KIB))
    await world.do("SET k " + "v" * (300 * KIB))
    found = await client.ask(PIPELINE, lines(*["GET k"] * 500))
    assert [len(one.get("value", "")) // KIB for one in found] == [300] * 3 + [0] * 497
    assert found[3]["error"] == "too large"
    assert max(steps) < 310 * KIB


@pytest.mark.parametrize("atomic", [False, True])
async def test_what_a_batch_popped_goes_back_when_its_client_leaves_before_it_is_on_disk(
    world: World, nursery: trio.Nursery, atomic: bool
) -> None:
    await world.do("QPUSH q a b c")
    world.commit_s = 1.0
    client = Client(world)
    nursery.start_soon(client.send, MULTI if atomic else PIPELINE, lines("QPOP q", "BQPOP q", "SET k v"))
    await world.settle()
    client.scope.cancel()
    await world.settle()
    assert client.answer is None
    assert list(world.state.queue(b"q") or ()) == [b"a", b"b", b"c"]
    assert await world.do("GET k") == Value(b"v")


async def test_what_a_batch_popped_goes_back_when_its_client_leaves_while_it_is_being_encoded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.do("QPUSH q a b")
    client = Client(world)
    encode = batches.encode

    def leaving(*arguments: Any) -> Iterator[bytes]:
        for one in encode(*arguments):
            client.scope.cancel()
            yield one

    monkeypatch.setattr(batches, "encode", leaving)
    await client.send(PIPELINE, lines("QPOP q", *["PING"] * 600))
    await world.settle()
    assert client.answer is None
    assert list(world.state.queue(b"q") or ()) == [b"a", b"b"]


async def test_what_was_answered_does_not_come_back(client: Client, world: World) -> None:
    await world.do("QPUSH q a b")
    assert await client.ask(PIPELINE, lines("QPOP q", *["PING"] * 600)) == [{"value": "b"}, *[{"value": "PONG"}] * 600]
    assert await client.ask(MULTI, lines("QPOP q")) == [{"value": "a"}]
    with trio.fail_after(60):
        await world.stop()  # which waits for all who may still leave
    assert list(world.state.queue(b"q") or ()) == []


async def test_while_shutting_down_a_batch_is_refused_whole(client: Client, world: World) -> None:
    world.engine.shut_down()
    for path in (PIPELINE, MULTI):
        answer = await client.send(path, lines("PING"))
        assert (answer.status, json.loads(answer.body)) == (503, {"error": "unavailable", "detail": "shutting down"})


async def test_a_batch_takes_its_commands_out_of_the_budget_until_it_is_answered(
    world: World, nursery: trio.Nursery
) -> None:
    world.commit_s = 1.0
    limits = Limits(bodies_bytes_max=200_000)
    client = Client(world, limits)
    budget = client.service.budget
    elements = lines(*["SET k v"] * 200)
    nursery.start_soon(client.send, PIPELINE, elements)
    await world.settle()
    assert client.body.data == b""
    assert 100_000 < limits.bodies_bytes_max - budget.left < 200_000
    body = HeldBody(json.dumps(elements).encode())
    assert await client.service.answer(PIPELINE, body) == service.BODIES_FULL
    assert client.answer is None
    await client.done.wait()
    assert client.answer is not None
    assert client.answer.status == 200
    assert budget.left == limits.bodies_bytes_max


async def test_small_batches_take_nothing_of_the_budget(world: World, nursery: trio.Nursery) -> None:
    world.commit_s = 1.0
    client = Client(world, Limits(bodies_bytes_max=1))
    nursery.start_soon(client.send, PIPELINE, lines("SET k v"))
    await world.settle()
    assert client.service.budget.left == 1
    assert FREE_BODY_BYTES >= 512


@pytest.mark.parametrize(("count", "threads"), [(200, 0), (400, 1)])
async def test_only_a_batch_that_is_not_quick_is_parsed_in_a_thread(
    client: Client, monkeypatch: pytest.MonkeyPatch, count: int, threads: int
) -> None:
    started = []
    run_sync = trio.to_thread.run_sync

    async def noting(*arguments: Any, **named: Any) -> Any:
        started.append(arguments)
        return await run_sync(*arguments, **named)

    monkeypatch.setattr(trio.to_thread, "run_sync", noting)
    assert len(await client.ask(PIPELINE, lines(*["SET key:000017 value"] * count))) == count
    assert len(started) == threads


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMMAND, b"[" * 100_000),
        (PIPELINE, b"[," * 100_000),
        (MULTI, b'[{"command": "BREW"}]'.ljust(100_000)),
    ],
)
async def test_f6_a_body_that_is_refused_is_freed_at_once(client: Client, path: str, body: bytes) -> None:
    """F6: not when the collector comes by, for it counts objects and not bytes.

    The thread that parsed has the exception, and so its frames, until it goes back to wait: that is in its own time.
    """
    body = bytes(bytearray(body))  # nobody else has it
    gc.disable()
    try:
        references = sys.getrefcount(body)
        assert (await client.send(path, body)).status == 400
        await until(lambda: sys.getrefcount(body) == references)
    finally:
        gc.enable()


@pytest.mark.parametrize("path", [PIPELINE, MULTI])
async def test_f13_a_defect_is_logged_and_not_shown(
    path: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """F13"""
    body = HeldBody(b'[{"command": "TTL k"}]')
    with caplog.at_level(logging.ERROR, "holdfast.http"):
        answer = await Service(FakeEngine(), Limits()).answer(path, body)
    assert answer == Answer(500, b'{"error": "internal error"}')
    assert "a defect with a secret in it" in caplog.text
