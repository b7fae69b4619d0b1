"""How long the door works in one go, and whose turn it is then (api/door/turns.py): floods, also at the shutdown."""

from __future__ import annotations

import gc
import itertools
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trio

from api.door.exchange import Exchange
from api.door.held import AheadBytes
from api.http.body import HeldBody
from api.server.http import serve_door
from tests.api.door.stand import GET_LIVEZ, line
from tests.harness.http import HOST, PING, Server, http, is_served, post, serving, until
from tests.harness.world import World

FLOOD_BYTES = 64 * 1024
"""What a client of a flood sends in one go: as much as is received in one go."""

FLOOD_S = 0.25
"""How long it is looked at, of this thread's time."""

LONGEST_MS = 20.0
"""Of this thread's time, for a turn of the event loop; a few milliseconds are usual."""

FLOODS = {
    "bad JSON": post(b"{"),
    "unknown command": post(b'{"command": "BREW"}'),
    "unknown path": post(b"{}", path=b"/nothing"),
    "unknown method": http(b"BREW /"),
    "foreign host": post(b"{}", head=b"Host: evil.example\r\n"),
    "bad batch": post(b"[1, 2]", path=b"/multi"),
    "long batch": post(b"[%b]" % b", ".join([PING] * 100), path=b"/pipeline"),
    "reads": line("GET k"),
    "writes": line("SET k v"),
    "pops that find nothing": line("BQPOP none 0"),
    "short chunks": b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % HOST + b"1;\r\n \r\n" * 9_000,
    "short trailers": b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n0\r\n" % HOST + b"a:\r\n" * 15_000,
    "a probe": GET_LIVEZ,
}


class Turns(trio.abc.Instrument):
    """Measures turns of the event loop.

    Attributes:
        number: of the turn that is running.
        longest_ms: what the longest took of this thread's time, all tasks together.
    """

    def __init__(self) -> None:
        self.number = 0
        self.longest_ms = 0.0
        self._began_s = 0.0

    def after_io_wait(self, timeout: float) -> None:
        self.number += 1
        self._began_s = time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        if self._began_s:
            self.longest_ms = max(self.longest_ms, (time.thread_time() - self._began_s) * 1000)


class Crowd:
    """Plain clients that send all at once; a thread reads what they get, to the end.

    Attributes:
        answers: how many came.
        whole: how many connections ended behind a whole answer, and not in a reset.
    """

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self.answers = self.whole = 0
        self._sockets = [socket.create_connection(address) for _ in range(count)]
        self._reader = threading.Thread(target=self._read)
        self._over = False

    def send(self, data: bytes) -> None:
        """Has each send this; the kernel has room for it, so nobody waits."""
        for client in self._sockets:
            client.sendall(data)
        self._reader.start()

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for client in self._sockets:
                selector.register(client, selectors.EVENT_READ)
            while selector.get_map() and not self._over:
                for key, _ in selector.select(0.01):
                    assert isinstance(key.fileobj, socket.socket)
                    self._receive(key.fileobj, selector)

    def _receive(self, client: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            data = client.recv(1 << 20)
            self.answers += data.count(b"HTTP/1.1 ")
            self.whole += not data
        except OSError:
            data = b""
        if not data:
            selector.unregister(client)

    def hang_up(self) -> None:
        self._over = True
        self._reader.join()
        for client in self._sockets:
            client.close()


@contextmanager
def uncollected() -> Iterator[None]:
    """The collector of this process has much to look at that is no server's."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("data", FLOODS.values(), ids=FLOODS.keys())
async def test_f5_no_flood_makes_a_turn_of_the_event_loop_long(nursery: trio.Nursery, data: bytes) -> None:
    """F5: 64 KiB from each of 64 clients in one turn; it took seconds."""
    world = World(nursery)
    await world.start()
    turns = Turns()
    async with serving(serve_door, real=world.engine) as server:
        await is_served(server)
        flood = Crowd(server.address, 64)
        await until(lambda: server.connections_open == 65)
        flood.send(data * (FLOOD_BYTES // len(data) + 1))
        trio.lowlevel.add_instrument(turns)
        with uncollected():
            begun_s = time.thread_time()
            while time.thread_time() < begun_s + FLOOD_S:
                await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()  # or the turn that was the last would not count
        trio.lowlevel.remove_instrument(turns)
        flood.hang_up()
        await is_served(server)
    await world.kill()
    assert 0 < turns.longest_ms < LONGEST_MS


class Starts:
    """Notes whose requests are started: each client's body has a letter of its own.

    Args:
        monkeypatch: of the test.
        then: called when so many were started, amid the turn.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, then: Callable[[], object]) -> None:
        self.letters = ""
        start = Exchange.start

        def noting(exchange: Exchange, data: bytes, held: HeldBody | None) -> None:
            self.letters += data[:1].decode()
            if len(self.letters) == count:
                then()
            start(exchange, data, held)

        monkeypatch.setattr(Exchange, "start", noting)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at the clock finds that another tenth of a millisecond is gone."""
    count = itertools.count()
    monkeypatch.setattr("api.door.turns.perf_counter", lambda: next(count) / 10_000)


@pytest.fixture
async def slow_server(slow: None, nursery: trio.Nursery, patience: None) -> Server:
    return Server(nursery, serve_door)


async def test_f5_requests_that_came_together_take_turns_with_those_of_others(
    slow_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F5: those of two floods with each other's, and one that comes later goes before nearly all of them."""
    floods = [Crowd(slow_server.address, 1) for _ in range(2)]
    other = Crowd(slow_server.address, 1)
    await until(lambda: slow_server.connections_open == 3)
    starts = Starts(monkeypatch, 100, lambda: other.send(post(b"c")))
    for letter, flood in zip((b"a", b"b"), floods, strict=True):
        flood.send(post(letter) * 300)
    await until(lambda: len(starts.letters) == 601)
    assert starts.letters.index("c") < 150
    runs = [len(list(run)) for _, run in itertools.groupby(starts.letters.replace("c", ""))]
    assert max(runs[:-1]) <= 25
    await until(lambda: sum(one.answers for one in (other, *floods)) == 601)
    for one in (other, *floods):
        one.hang_up()
    slow_server.hang_up()


async def test_f6_who_only_has_to_wait_for_its_turn_is_not_closed_over_what_others_have_sent(
    slow_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F6: little is received when much waits already."""
    monkeypatch.setattr(AheadBytes, "bytes_max", 12 * FLOOD_BYTES)
    flood = Crowd(slow_server.address, 64)
    await until(lambda: slow_server.connections_open == 64)
    flood.send(post(PING.ljust(4_000)) * 16)
    await until(lambda: flood.answers == 64 * 16)
    flood.hang_up()


async def test_f10_requests_that_are_put_off_are_answered_in_order(slow_server: Server) -> None:
    """F10: refused ones, commands, and what a task answers."""
    client = await slow_server.connect()
    kinds = [(post(b"{"), 400), (post(PING), 200), (post(b'{"command": "GET none"}'), 404), (http(b"GET /none"), 404)]
    for _ in range(2):
        await client.send(b"".join(data for data, _ in kinds) * 25)
        for _ in range(25):
            assert [(await client.answer()).status for _ in kinds] == [status for _, status in kinds]
    slow_server.hang_up()


async def test_h1_behind_a_flood_a_shutdown_starts_nothing_more_and_all_get_whole_answers(
    slow_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H1: it took 10 s, more than the process has."""
    flood = Crowd(slow_server.address, 8)
    await until(lambda: slow_server.connections_open == 8)
    starts = Starts(monkeypatch, 100, slow_server.stop)
    flood.send(post(b"{") * 1000)
    await until(slow_server.stopped.is_set)
    assert len(starts.letters) < 1000
    await until(lambda: flood.whole == 8)
    assert flood.answers == len(starts.letters)
    flood.hang_up()


async def test_f6_a_body_of_many_chunks_is_read_in_turns(slow_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """F6: 64 KiB of the shortest with extensions took 100 ms."""
    turns = Turns()
    trio.lowlevel.add_instrument(turns)
    client = await slow_server.connect()
    begun = turns.number
    body = PING.ljust(8000)
    chunks = b"".join(b"1;\r\n%c\r\n" % byte for byte in body)
    await client.send(b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (HOST, chunks))
    assert (await client.answer()).json == {"value": "PONG"}
    assert turns.number - begun > 8000 * 3 // 256
    trio.lowlevel.remove_instrument(turns)
    slow_server.hang_up()
