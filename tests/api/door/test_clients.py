"""Clients of the door that wait, leave, are slow, or do not read: with the real engine, under virtual time.

A commit takes as long as the test lets it: the clock moves only when the test moves it.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import NoReturn

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from api.dialects import answers, batches
from api.dialects.answers import Answer
from api.dialects.request import Request
from api.door.shared import Shared
from api.server.http import serve_door
from engine.replies import Reply
from tests.harness.http import HOST, PING, Client, Server, listen, post, until
from tests.harness.world import World

COMMIT_S = 1.0
MIB = 1 << 20


class Stand(Server):
    """A server by the door, with the real engine on a fake disk, and small buffers in the kernel."""

    def __init__(self, nursery: trio.Nursery, world: World, clock: MockClock) -> None:
        super().__init__(nursery, serve_door, real=world.engine, listeners=[listen(send_buffer_bytes=4096)])
        self.world = world
        self._clock = clock

    @property
    def requests_open(self) -> int:
        return self.app.traffic()["requests_open"]

    async def connect(self, *, receive_buffer_bytes: int | None = 4096) -> Client:
        return await super().connect(receive_buffer_bytes=receive_buffer_bytes)

    async def pass_time(self, seconds: float) -> None:
        """Moves the clock, and lets everything happen that is due."""
        await trio.testing.wait_all_tasks_blocked(0.002)
        for _ in range(4):
            self._clock.jump(seconds / 4)
            await trio.testing.wait_all_tasks_blocked(0.002)

    async def run(self, *lines: str) -> None:
        """Has commands done by the engine directly, and their commits made."""
        for line in lines:
            job = self.world.spawn(line)
            while not job.done.is_set():
                await self.pass_time(COMMIT_S)

    def queue(self, key: bytes = b"q") -> list[bytes]:
        return list(self.world.state.queue(key) or ())

    def value(self, key: str) -> bytes | None:
        return next((entry[2] for entry in self.world.dump() if entry[1] == key.encode()), None)

    async def values_are(self, *values: bytes) -> None:
        """Waits until the queue `q` holds these values."""
        await until(lambda: self.queue() == list(values))


@pytest.fixture
async def stand(nursery: trio.Nursery, patience: None, still_clock: MockClock) -> AsyncIterator[Stand]:
    world = World(nursery, commit_s=COMMIT_S)
    await world.start()
    stand = Stand(nursery, world, still_clock)
    yield stand
    stand.hang_up()
    await world.kill()


def line(command: str) -> bytes:
    return post(b'{"command": "%b"}' % command.encode())


# Who leaves: E2 to E6


async def test_e4_a_client_that_leaves_in_the_same_turn_as_the_push_gets_nothing(stand: Stand) -> None:
    """E4: whichever of the two the kernel reports first."""
    for push_first in (False, True):
        waiter, pusher = await stand.connect(), await stand.connect()
        await waiter.send(line("BQPOP q"))
        await until(lambda: stand.world.engine.statistics().waiters == 1)
        # No await in between: the door hears of both at once.
        with socket.fromfd(pusher.stream.socket.fileno(), socket.AF_INET, socket.SOCK_STREAM) as plain:
            if push_first:
                plain.send(line("QPUSH q a"))
            waiter.reset()
            if not push_first:
                plain.send(line("QPUSH q a"))
        await stand.values_are(b"a")
        await stand.pass_time(COMMIT_S)
        assert (await pusher.answer()).status == 200
        await stand.run("DELETE q")


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


async def test_e5_popped_values_whose_answers_are_unsent_go_back_in_order(stand: Stand) -> None:
    """E5: behind an answer that the client does not read."""
    await stand.run("SET big " + "x" * MIB, "QPUSH q a b c d")
    client = await stand.connect()
    await client.send(line("GET big") + line("BQPOP q 0") + line("BQPOP q 0") + line("QPOP q"))
    await stand.values_are(b"c")
    await stand.pass_time(COMMIT_S)
    await until(lambda: stand.requests_open == 0)  # all three are answered, and wait behind the first
    assert stand.queue() == [b"c"]
    client.reset()
    await stand.values_are(b"a", b"b", b"c", b"d")


async def test_e5_a_popped_value_whose_first_byte_is_out_does_not_go_back(stand: Stand) -> None:
    """E5, E6"""
    await stand.run("QPUSH q " + "x" * MIB + " b")
    client = await stand.connect()
    await client.send(line("BQPOP q 0") + line("BQPOP q 0"))
    await stand.values_are()
    await stand.pass_time(COMMIT_S)
    await until(lambda: stand.requests_open == 0)
    client.reset()
    await stand.values_are(b"b")


async def test_e5_values_popped_by_a_batch_go_back_when_its_answer_is_unsent(stand: Stand) -> None:
    """E5"""
    await stand.run("SET big " + "x" * MIB, "QPUSH q a b c")
    client = await stand.connect()
    pops = post(b'[{"command": "BQPOP q"}, {"command": "SET k v"}, {"command": "BQPOP q"}]', path=b"/pipeline")
    await client.send(line("GET big") + pops)
    await stand.values_are(b"c")
    await stand.pass_time(COMMIT_S)
    await until(lambda: stand.requests_open == 0)
    client.reset()
    await stand.values_are(b"a", b"b", b"c")
    assert stand.value("k") == b"v"  # what is done stays done


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


async def test_e3_nothing_is_started_behind_a_parked_pop_before_its_turn(stand: Stand) -> None:
    """E3"""
    client = await stand.connect()
    await client.send(line("BQPOP q") + line("SET k v"))
    await until(lambda: stand.world.engine.statistics().waiters == 1)
    await stand.pass_time(COMMIT_S * 2)
    assert stand.value("k") is None
    await stand.run("QPUSH q a")
    assert (await client.answer()).json == {"value": "a"}
    await stand.pass_time(COMMIT_S * 2)
    assert (await client.answer()).status == 200
    assert stand.value("k") == b"v"


async def test_a_pop_that_finds_a_value_or_does_not_wait_holds_nothing_up_for_long(stand: Stand) -> None:
    await stand.run("QPUSH q a")
    client = await stand.connect()
    await client.send(line("BQPOP q") + line("BQPOP q 0") + line("BQPOP q 50") + line("PING"))
    for expected in ("a", None):
        await stand.pass_time(COMMIT_S * 2)
        assert (await client.answer()).json == {"value": expected}
    await stand.pass_time(40)
    assert stand.world.engine.statistics().waiters == 1
    await stand.pass_time(12)
    assert (await client.answer()).json == {"value": None}
    assert (await client.answer()).json == {"value": "PONG"}


# Who does not read: F5


async def test_f5_a_client_that_does_not_read_is_dropped_and_one_that_reads_slowly_is_not(stand: Stand) -> None:
    """F5: 30 seconds without any progress."""
    await stand.run("SET big " + "x" * 100_000)
    client = await stand.connect()
    await client.send(line("GET big"))
    await stand.pass_time(COMMIT_S)
    received, goal_bytes = b"", 0
    while not received.endswith(b"}"):
        await stand.pass_time(25)
        goal_bytes += 20_000  # more than the kernel holds, so that the server has sent some of it meanwhile
        while len(received) < goal_bytes and not received.endswith(b"}"):
            some = await client.stream.receive_some()
            assert some, "dropped"
            received += some
    assert trio.current_time() > 100
    await client.send(line("GET big"))
    await stand.pass_time(COMMIT_S)
    await stand.pass_time(28)
    assert stand.connections_open == 1
    for _ in range(5):  # the kernel has timers of its own, and may take a few bytes more
        await stand.pass_time(31)
    await until(lambda: stand.connections_open == 0)


async def test_f5_the_worst_reader_goes_when_unsent_bytes_are_too_many(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F5: and the count is right again afterwards."""
    monkeypatch.setattr("api.door.unsent.UNSENT_BYTES_MAX", 3 * MIB // 2)
    await stand.run("SET big " + "x" * MIB, "SET half " + "x" * (MIB // 2 + 50_000))
    for _ in range(3):
        worst, other = await stand.connect(), await stand.connect()
        await worst.send(line("GET big"))
        await stand.pass_time(COMMIT_S)
        assert stand.connections_open == 2
        await other.send(line("GET half"))
        await stand.pass_time(COMMIT_S)
        await until(lambda: stand.connections_open == 1)
        assert len((await other.answer()).body) > MIB // 2
        await other.stream.aclose()
        await until(lambda: stand.connections_open == 0)
        worst.stream.socket.close()


async def test_f5_the_one_whose_answer_is_too_much_may_be_the_worst_itself(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F5"""
    monkeypatch.setattr("api.door.unsent.UNSENT_BYTES_MAX", MIB // 2)
    await stand.run("SET big " + "x" * MIB, "QPUSH q a")
    client = await stand.connect()
    await client.send(line("GET big") + line("BQPOP q 0") + line("BQPOP q"))
    await stand.pass_time(COMMIT_S)
    await until(lambda: stand.connections_open == 0)
    await stand.values_are(b"a")
    assert stand.world.engine.statistics().waiters == 0


async def test_f5_values_that_only_wait_to_be_answered_count_if_they_are_copies(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F5: an engine that has them from elsewhere has each in memory once more; and the count is right afterwards."""
    monkeypatch.setattr("api.door.unsent.UNSENT_BYTES_MAX", 5 * MIB // 2)
    await stand.run("SET big " + "x" * MIB)

    def are_there(count: int) -> Callable[[], bool]:
        return lambda: stand.connections_open == count

    for copies, there in ((False, 1), (True, 0), (True, 0), (False, 1)):
        stand.world.engine.copies_values = copies
        client = await stand.connect()
        await client.send(line("GET big") * 4)
        await stand.pass_time(COMMIT_S)
        await until(are_there(there))
        if there:
            assert [len((await client.answer()).body) > MIB for _ in range(4)] == [True] * 4
        client.stream.socket.close()
        await until(are_there(0))
    stand.world.engine.copies_values = True
    client = await stand.connect()
    for _ in range(3):
        await client.send(line("GET big") * 2)
        await stand.pass_time(COMMIT_S)
        assert [len((await client.answer()).body) > MIB for _ in range(2)] == [True] * 2


async def test_f5_long_answers_are_made_when_the_client_reads(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """F5: all at once they took 12 MiB of memory for each MiB of the values, and held everybody up."""
    made = []
    word = Shared.word

    async def noting(shared: Shared, request: Request, reply: Reply) -> Answer:
        made.append(reply)
        return await word(shared, request, reply)

    monkeypatch.setattr(Shared, "word", noting)
    await stand.run("SET big " + "x" * MIB)
    client = await stand.connect()
    await client.send((line("GET big") + line("GET big") + line("GET none") + line("SET k v")) * 5)
    await stand.pass_time(COMMIT_S)
    assert len(made) == 1
    for _ in range(5):
        answers = [await client.answer() for _ in range(2)]
        assert [len(answer.body) > MIB for answer in answers] == [True, True]
        await stand.pass_time(COMMIT_S)
        assert [(await client.answer()).status for _ in range(2)] == [404, 200]
    assert len(made) == 10


async def test_f5_nothing_is_started_for_a_client_that_does_not_read(stand: Stand) -> None:
    """F5"""
    await stand.run("SET big " + "x" * MIB)
    client = await stand.connect()
    await client.send(line("GET big"))
    await stand.pass_time(COMMIT_S)
    await client.send(line("SET k v"))
    await stand.pass_time(COMMIT_S)
    assert stand.value("k") is None
    assert len((await client.answer()).body) > MIB
    await stand.pass_time(COMMIT_S)
    assert (await client.answer()).status == 200


# Who is slow: F4


async def test_f4_a_body_that_comes_slowly_is_answered_408(stand: Stand) -> None:
    """F4: a byte now and then buys no time."""
    client = await stand.connect()
    await client.send(post(PING)[:-6])
    for _ in range(5):
        await stand.pass_time(11)
        await client.send(b" ")
    assert stand.connections_open == 1
    await stand.pass_time(6)
    (answer,) = await client.read_to_end()
    assert (answer.status, answer.json["error"]) == (408, "request timeout")
    assert answer.headers[b"connection"] == b"close"


async def test_f4_a_slow_head_behind_a_request_in_work_does_not_touch_that(stand: Stand) -> None:
    """F4: the answers come in order, whatever happens first."""
    stand.world.commit_s = 20
    client = await stand.connect()
    await client.send(line("SET k v") + b"POST / HTTP/1.1\r\n")
    await stand.pass_time(8)
    assert stand.requests_open == 2
    await stand.pass_time(14)
    assert [answer.status for answer in await client.read_to_end()] == [200, 408]
    assert stand.value("k") == b"v"


async def test_f4_a_pop_has_no_deadline_but_what_follows_it_has(stand: Stand) -> None:
    """F4"""
    client = await stand.connect()
    await client.send(line("BQPOP q") + b"POST / HTTP/1.1\r\n")
    await stand.pass_time(1_000_000)
    await stand.run("QPUSH q a")
    assert (await client.answer()).json == {"value": "a"}
    await stand.pass_time(5.5)
    (answer,) = await client.read_to_end()
    assert answer.status == 408


async def test_f4_deadlines_hold_after_a_slow_reader_has_caught_up(stand: Stand) -> None:
    """F4, F5"""
    await stand.run("SET big " + "x" * MIB)
    idle, busy = await stand.connect(), await stand.connect()
    await idle.send(line("GET big"))
    await busy.send(line("GET big") + b"POST / HT")
    await stand.pass_time(COMMIT_S)
    await stand.pass_time(20)
    assert (await busy.answer()).status == 200
    assert (await idle.answer()).status == 200
    await stand.pass_time(4.5)
    assert stand.connections_open == 2
    await stand.pass_time(1)
    (answer,) = await busy.read_to_end()
    assert answer.status == 408
    await stand.pass_time(68)
    assert stand.connections_open >= 1
    await stand.pass_time(3)
    assert await idle.ended()


async def test_an_idle_connection_is_closed_after_75_seconds_whatever_it_did_before(stand: Stand) -> None:
    fresh, used = await stand.connect(), await stand.connect()
    await used.send(b"GET /livez HTTP/1.1\r\n%b\r\n" % HOST)
    await used.answer()
    await stand.pass_time(10)
    await used.send(line("PING"))
    await stand.pass_time(COMMIT_S)
    await used.answer()
    await stand.pass_time(63)
    assert stand.connections_open == 2
    await stand.pass_time(2)
    assert await fresh.ended()
    await stand.pass_time(8)
    assert stand.connections_open == 1
    await stand.pass_time(4)
    assert await used.ended()


# Shutdown: H1, E8


async def test_h1_a_shutdown_answers_what_is_in_work_and_nothing_behind_it(stand: Stand) -> None:
    """H1"""
    stand.world.commit_s = 2.5
    pipelined, body, head, big = [await stand.connect() for _ in range(4)]
    await pipelined.send(line("SET a 1") + line("SET b 2") + b"POST / HT")
    await body.send(post(PING)[:-6])
    await head.send(b"POST /")
    await big.send(post(PING.ljust(100_000))[:-6])
    await until(lambda: stand.requests_open == 4)
    stand.stop()
    stand.world.engine.close()
    assert [(answer.status, answer.json["error"]) for answer in await body.read_to_end()] == [(503, "unavailable")]
    assert [answer.status for answer in await big.read_to_end()] == [503]
    assert await head.ended()
    await stand.pass_time(1.25)  # those who were refused may take a second to close
    assert stand.connections_open == 1
    await stand.pass_time(1.25)
    answers = await pipelined.read_to_end()
    assert [answer.status for answer in answers] == [200, 200]
    await stand.pass_time(5)
    await until(stand.stopped.is_set)
    await stand.world.ended.wait()


async def test_h1_f5_a_shutdown_waits_a_moment_for_readers_and_gives_back_what_they_did_not_read(stand: Stand) -> None:
    """H1, F5, E5"""
    await stand.run("SET big " + "x" * MIB, "QPUSH q a b")
    client = await stand.connect()
    await client.send(line("GET big") + line("BQPOP q 0"))
    await stand.values_are(b"b")
    await stand.pass_time(COMMIT_S)
    await until(lambda: stand.requests_open == 0)
    stand.stop()
    stand.world.engine.close()
    await stand.pass_time(2.5)
    assert not stand.stopped.is_set()
    await stand.pass_time(1)
    await until(stand.stopped.is_set)
    await stand.pass_time(COMMIT_S * 2)
    await stand.world.ended.wait()
    assert stand.queue() == [b"a", b"b"]
