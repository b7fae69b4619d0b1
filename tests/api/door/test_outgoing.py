"""What is answered (api/door/outgoing.py): in order, and also to clients that do not read.

What the kernel takes of it is in test_outbox.py.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from api.dialects.answers import Answer
from api.dialects.request import Request
from api.door.shared import Shared
from api.http.sockets import tune
from api.server.http import serve_door
from engine.replies import Reply
from tests.api.door.stand import COMMIT_S, MIB, Stand, line
from tests.harness.http import HOST, PING, Client, Server, chunked, http, listen, post, serving, until
from tests.harness.world import World

# Order: F10


def _mixed(number: int, lot: random.Random) -> tuple[bytes, int, object]:
    """A request, and the status and body of its answer; some are answered at once, some by a task."""
    key = b"k%d" % number
    return lot.choice(
        [
            (post(b"{"), 400, ...),
            (post(b'{"command": "BREW %b"}' % key), 400, ...),
            (post(PING), 200, {"value": "PONG"}),
            (post(b'{"command": "SET %b v"}' % key), 200, None),
            (post(b'{"command": "GET", "key": "%b"}' % key), 404, ...),
            (post(b'{"command": "BQPOP %b 0"}' % key), 200, {"value": None}),
            (post(b'{"command": "EXISTS %b"}' % key), 200, {"value": 0}),
            (post(b'[{"command": "QLEN %b"}]' % key, path=b"/pipeline"), 200, [{"value": 0}]),
            (post(b'[{"command": "DELETE %b"}]' % key, path=b"/multi"), 404, ...),
            (post(PING.ljust(70_000)), 200, {"value": "PONG"}),
            (chunked(b"13\r\n%b\r\n0\r\n\r\n" % PING), 200, {"value": "PONG"}),
            (http(b"GET /livez"), 200, {"status": "alive"}),
            (http(b"GET /" + key), 404, ...),
            (http(b"GET /", host=b"Host: evil.example\r\n"), 403, ...),
            (post(PING, head=b"Host: evil.example\r\n"), 403, ...),
        ]
    )


@pytest.mark.parametrize("seed", range(4))
async def test_f10_a_hundred_pipelined_requests_of_all_kinds_are_answered_in_order(
    nursery: trio.Nursery, seed: int
) -> None:
    """F10"""
    lot = random.Random(seed)
    world = World(nursery, commit_s=0.005)
    await world.start()
    requests = [_mixed(number, lot) for number in range(100)]
    async with serving(serve_door, real=world.engine) as server:
        client = await server.connect()
        await client.send(b"".join(data for data, _, _ in requests))
        for _, status, body in requests:
            answer = await client.answer()
            assert (answer.status, ... if body is ... else (answer.body and answer.json) or None) == (status, body)
        await client.send(post(PING, head=HOST + b"Connection: close\r\n"))
        assert [answer.status for answer in await client.read_to_end()] == [200]
    await world.stop()


async def test_f10_more_than_may_be_on_their_way_at_once_are_answered_in_order(server: Server) -> None:
    """F10: 2,000 in one piece: some are in work, some wait with us, the rest in the kernel."""
    client = await server.connect()
    await client.send(b"".join(post(b'{"command": "SET k%d %d"}' % (n, n)) for n in range(1000)))
    await client.send(b"".join(post(b'{"command": "GET k%d"}' % n) for n in range(1000)))
    assert [(await client.answer()).body for _ in range(1000)] == [b""] * 1000
    assert [(await client.answer()).json for _ in range(1000)] == [{"value": str(n)} for n in range(1000)]


# Popped values whose answers are unsent: E5, E6


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


async def test_f5_what_a_client_acknowledges_is_progress_though_the_kernel_takes_nothing_more(
    nursery: trio.Nursery, patience: None, still_clock: MockClock
) -> None:
    """F5: the kernel had some megabytes for it, took more when a third of that was gone, and the client was cut off."""
    world = World(nursery)
    await world.start()
    async with serving(serve_door, real=world.engine) as server:
        await world.do("SET big " + "x" * (MIB - 100))
        client = await server.connect(receive_buffer_bytes=4096)
        await client.send(post(b"[%b]" % b", ".join([b'{"command": "GET big"}'] * 8), path=b"/pipeline"))
        await until(lambda: server.app.traffic()["requests_open"] == 0)
        await until(lambda: unacknowledged_bytes(client) > MIB)
        kept_bytes = unacknowledged_bytes(client)
        for _ in range(6):
            goal_bytes = unacknowledged_bytes(client) - 50_000
            while unacknowledged_bytes(client) > goal_bytes:
                assert await client.stream.receive_some(20_000), "dropped"
            for _ in range(5):
                still_clock.jump(5)
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert server.connections_open == 1
        assert kept_bytes - 1_000_000 < unacknowledged_bytes(client) < kept_bytes - 200_000  # nothing came behind it
        for _ in range(10):
            still_clock.jump(5)
            await trio.testing.wait_all_tasks_blocked(0.001)
        await until(lambda: server.connections_open == 0)
    await world.kill()


async def test_f5_a_client_with_a_small_receive_buffer_that_reads_steadily_gets_on(nursery: trio.Nursery) -> None:
    """F5: to the kernel its window is closed for ever, and TCP_USER_TIMEOUT cut it off; 55 s in a server, 1 s here."""
    world = World(nursery)
    await world.start()
    listener = listen()
    tune(listener, user_timeout_s=1)
    async with serving(serve_door, real=world.engine, listeners=[listener]) as server:
        await world.do("SET big " + "x" * (MIB - 100))
        client = await server.connect(receive_buffer_bytes=4096)
        await client.send(post(b"[%b]" % b", ".join([b'{"command": "GET big"}'] * 8), path=b"/pipeline"))
        read_until = trio.current_time() + 2.5
        while trio.current_time() < read_until:
            assert await client.stream.receive_some(500), "dropped"
            await trio.sleep(0.05)
        assert server.connections_open == 1
    await world.kill()


def unacknowledged_bytes(client: Client) -> int:
    """What the server's kernel has for a client of this machine."""
    ends = [f"{socket.inet_aton(host)[::-1].hex().upper()}:{port:04X}" for host, port in ends_of(client)]
    for row in Path("/proc/net/tcp").read_text().splitlines():
        fields = row.split()
        if fields[1:3] == ends:
            return int(fields[4].partition(":")[0], 16)
    return 0


def ends_of(client: Client) -> list[tuple[str, int]]:
    """Server and client."""
    return [client.stream.socket.getpeername(), client.stream.socket.getsockname()]


async def test_f5_the_worst_reader_goes_when_unsent_bytes_are_too_many(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F5: and the count is right again afterwards."""
    monkeypatch.setattr("api.door.held.UnsentBytes.bytes_max", 3 * MIB // 2)
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
    monkeypatch.setattr("api.door.held.UnsentBytes.bytes_max", MIB // 2)
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
    monkeypatch.setattr("api.door.held.UnsentBytes.bytes_max", 5 * MIB // 2)
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
