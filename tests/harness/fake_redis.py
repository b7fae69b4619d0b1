"""Fakes at the two seams of the engine on Redis: a router that a test answers for, and nodes that are reached without a
network.

    router = FakeRouter()
    lines.park(call)
    router.answer(router.posted[0], [MARK, b"a"])     # in any order, with any value or exception

    net = FakeNet(monkeypatch, "a:1", "b:1")          # from now on coredis connects to these
    net["a:1"].answers[b"GET"] = lambda words: None   # what a command is answered; HOLD is no answer yet
    net["a:1"].sent                                   # commands that came, handshakes left out

A `FakeNode` does what a front asks of a Redis with one Python dict: the few commands, the scripts by their digest,
tracking, slots. It works when bytes arrive, and under virtual time everything is as deterministic as trio is.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgpack
import pytest
import trio
from anyio import BrokenResourceError, EndOfStream
from anyio.abc import ByteStream
from coredis.connection import TCPConnection

from engine.redis.endpoint import Address
from engine.redis.errors import NotSent
from engine.redis.format import is_mark
from engine.redis.request import Request
from engine.redis.scripts import ALONE, GIVE_BACK, SCRIPTS
from engine.redis.slots import SLOTS, slot_of

MARK = b"holdfast:queue:" + b"0" * 32


class FakeRouter:
    """What is posted lies here until the test answers it.

    Attributes:
        posted: requests that are not answered yet, the oldest first.
        down: answers everything at once, from within, when it is set.
        abandoned: slots whose master has too few replicas: what writes there and does not insist is refused likewise.
    """

    def __init__(self, slot: Callable[[bytes], int] = slot_of) -> None:
        self.posted: list[Request] = []
        self.down: Exception | None = None
        self.abandoned: set[int] = set()
        self._slot = slot

    def post(self, request: Request) -> None:
        if self.down is not None:
            request.done(self.down)
        elif request.writes and not request.insists and request.slot in self.abandoned:
            request.done(NotSent("too few replicas"))
        else:
            self.posted.append(request)

    def slot_of(self, key: bytes) -> int:
        return self._slot(key)

    def is_up(self, _slot: int) -> bool:
        return self.down is None

    def takes_writes(self, slot: int) -> bool:
        return self.down is None and slot not in self.abandoned

    def answer(self, request: Request, result: Any) -> None:
        """Tells what became of a request."""
        self.posted.remove(request)
        request.done(result)

    def answer_next(self, result: Any) -> Request:
        """Tells what became of the oldest request."""
        request = self.posted[0]
        self.answer(request, result)
        return request


class Fault(Exception):
    """An error that a node answers, code and text."""


HOLD = object()
"""No answer, ever: what comes behind it on the same connection is not done either."""


class Keys:
    """What a Redis holds, and what its commands do to it; time is trio's.

    Attributes:
        held: plain values as bytes, queues and lists, receipts as dicts.
        deadlines_ms: of plain values that expire.
    """

    def __init__(self) -> None:
        self.held: dict[bytes, Any] = {}
        self.deadlines_ms: dict[bytes, int] = {}
        self.changed: Callable[[bytes], None] = lambda _key: None

    def do(self, words: Sequence[bytes]) -> Any:
        """Does a command on keys."""
        for key in [key for key, deadline_ms in self.deadlines_ms.items() if deadline_ms <= _now_ms()]:
            self._remove(key)
        name, *rest = words
        if name in (b"EVALSHA", b"EVAL"):
            return self._script(rest[0], rest[2], rest[3:])
        method = getattr(self, "_" + name.decode().lower())
        return method(*rest)

    def queue(self, key: bytes) -> list[bytes]:
        """The values of a queue."""
        queue: list[bytes] = self.held.get(key, [])
        return queue[1:]

    def _set(self, key: bytes, value: bytes, *options: bytes) -> bytes | None:
        exists = key in self.held
        if (b"NX" in options and exists) or (b"XX" in options and not exists):
            return None
        self._remove(key)
        self.held[key] = value
        if b"PX" in options:
            self.deadlines_ms[key] = _now_ms() + int(options[options.index(b"PX") + 1])
        self.changed(key)
        return b"OK"

    def _get(self, key: bytes) -> bytes | None:
        value = self.held.get(key)
        if isinstance(value, list):
            raise Fault("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def _pttl(self, key: bytes) -> int:
        if key not in self.held:
            return -2
        return self.deadlines_ms[key] - _now_ms() if key in self.deadlines_ms else -1

    def _exists(self, *keys: bytes) -> int:
        return sum(key in self.held for key in keys)

    def _unlink(self, *keys: bytes) -> int:
        return sum([self._remove(key) for key in keys])

    def _hdel(self, key: bytes, *fields: bytes) -> int:
        return sum([self.held.get(key, {}).pop(field, None) is not None for field in fields])

    def _dbsize(self) -> int:
        return len(self.held)

    def _remove(self, key: bytes) -> bool:
        self.deadlines_ms.pop(key, None)
        if self.held.pop(key, None) is None:
            return False
        self.changed(key)
        return True

    # Scripts: what lua/*.lua do

    def _script(self, digest: bytes, key: bytes, words: Sequence[bytes]) -> Any:
        held = self.held.get(key)
        if SCRIPTS[digest] is GIVE_BACK:
            return self._give_back(key, words)
        if isinstance(held, bytes):
            raise Fault("WRONGTYPE the key holds a plain value")
        [name] = [name for name, script in ALONE.items() if script.digest == digest]
        methods = {"QPUSH": self._qpush, "QPOP": self._qpop, "BQPOP": self._bqpop, "QLEN": self._qlen}
        return methods[name](key, words)

    def _qpush(self, key: bytes, words: Sequence[bytes]) -> int:
        queue = self.held.setdefault(key, [words[0]])
        queue += msgpack.unpackb(words[1], raw=True)
        self.changed(key)
        return len(queue) - 1

    def _qlen(self, key: bytes, _words: Sequence[bytes]) -> int:
        return len(self.queue(key))

    def _qpop(self, key: bytes, words: Sequence[bytes]) -> Any:
        queue = self.held.get(key)
        if not queue or len(queue) == 1:
            return 0 if queue else None
        value = queue.pop()
        self.held.setdefault(words[0], {})[words[1]] = b">" + queue[0] + value
        self.changed(key)
        return [b"", value]

    def _bqpop(self, key: bytes, words: Sequence[bytes]) -> Any:
        count, _bytes_max, receipts, token = words
        queue = self.held.get(key, [])
        taken = queue[1 : 1 + int(count)]
        if not taken:
            return None
        del queue[1 : 1 + len(taken)]
        for index, value in enumerate(taken):
            self.held.setdefault(receipts, {})[b"%d" % (int(token) + index)] = b"<" + queue[0] + value
        self.changed(key)
        return [b"", *taken]

    def _give_back(self, key: bytes, words: Sequence[bytes]) -> int:
        noted = self.held.get(words[0], {})
        queue = self.held.get(key)
        returned = 0
        for token, body in zip(words[1::2], words[2::2], strict=True):
            receipt = noted.pop(token, body)
            if isinstance(queue, list) and is_mark(queue[0]) and receipt[1 : 1 + len(MARK)] == queue[0]:
                queue.insert(1 if receipt[:1] == b"<" else len(queue), receipt[1 + len(MARK) :])
                returned += 1
        if returned:
            self.changed(key)
        return returned


def _now_ms() -> int:
    return round(trio.current_time() * 1000)


class FakeNode:
    """A master; or a replica, which knows no more than who is master.

    Attributes:
        keys: what it holds.
        slots: that it owns; without any it is one Redis that is no cluster.
        moving: slots on their way to another node, whose keys are there already.
        importing: slots on their way here.
        answers: what commands are answered instead, by name: a function of their words that returns a value, raises
            `Fault`, or returns HOLD.
        sent: commands that came, by the ends of their pipelines: each is what one connection has sent at once.
        connections: that are open.
        loaded: scripts that were.
        replicas: how many follow it, and have everything.
        refuses: whether it lets nobody connect; `silent`: whether it says nothing, and does nothing, for now.
    """

    def __init__(self, net: FakeNet, address: Address) -> None:
        self.address = address
        self.keys = Keys()
        self.slots: set[int] = set(range(SLOTS))
        self.cluster = True
        self.moving: dict[int, FakeNode] = {}
        self.importing: set[int] = set()
        self.answers: dict[bytes, Callable[[Sequence[bytes]], Any]] = {}
        self.sent: list[list[tuple[bytes, ...]]] = []
        self.connections: list[FakeConnection] = []
        self.loaded: list[bytes] = []
        self.version = b"7.0.15"
        self.replicas = 0
        self.refuses = self.silent = False
        self.net = net
        self.keys.changed = self._key_changed
        self.tracked: defaultdict[bytes, set[FakeConnection]] = defaultdict(set)
        self._clients = self._ports = 0
        self._rows: tuple[set[int], list[Any]] | None = None

    def connect(self) -> FakeConnection:
        """A client comes."""
        if self.refuses:
            raise ConnectionRefusedError(111, "Connection refused")
        self._clients += 1
        self._ports += 1
        connection = FakeConnection(self, self._clients, b"10.9.9.9:%d" % self._ports)
        self.connections.append(connection)
        return connection

    def pipelines(
        self, *, without: Iterable[bytes] = (b"DBSIZE", b"CLUSTER", b"ROLE", b"CONFIG", b"TYPE", b"INFO")
    ) -> list[list[tuple[bytes, ...]]]:
        """What came, without what is sent to set a connection up or to keep up with the topology."""
        named = [[words for words in pipeline if words[0] not in without] for pipeline in self.sent]
        return [pipeline for pipeline in named if pipeline]

    def start_again(self) -> None:
        """Its process ends, and another one begins, which counts its clients from 1 on."""
        self.cut()
        self._clients = 0

    def rows(self) -> list[Any]:
        """Its part of CLUSTER SLOTS."""
        if self._rows is None or self._rows[0] != self.slots:
            starts = [slot for slot in sorted(self.slots) if slot - 1 not in self.slots]
            ends = [slot for slot in sorted(self.slots) if slot + 1 not in self.slots]
            name = [self.address.host.encode(), self.address.port, b"id"]
            rows = [[start, end, name] for start, end in zip(starts, ends, strict=True)]
            self._rows = set(self.slots), rows
        return self._rows[1]

    def cut(self, *, losing: bool = False) -> None:
        """Closes all connections: what was not read is never done, what was answered reaches the client.

        Args:
            losing: it does not; so what is lost may have been done.
        """
        for connection in self.connections:
            connection.end(losing=losing)
        self.connections.clear()

    def speak(self) -> None:
        """Ends `silent`: everything that came meanwhile is done now, also for clients that have left unnoticed; new
        connections come first, which is the worst."""
        self.silent = False
        for connection in reversed(list(self.connections)):
            connection.work()

    def _key_changed(self, key: bytes) -> None:
        for connection in self.tracked.pop(key, set()):
            connection.push(b"invalidate", [key])

    def do(self, connection: FakeConnection, words: Sequence[bytes]) -> Any:
        """Does one command."""
        name = words[0].upper()
        if name in self.answers:
            return self.answers[name](words)
        if name in _ABOUT:
            return _ABOUT[name](self, connection, words)
        asking, connection.asking = connection.asking, False
        caching, connection.caching = connection.caching, False
        keys = _keys_of(words)
        if keys:
            self._check_slot(keys, asking=asking)
        if caching:
            for key in keys:
                self.tracked[key].add(connection)
        return self.keys.do(words)

    def _check_slot(self, keys: Sequence[bytes], *, asking: bool) -> None:
        if not self.cluster:
            return
        slot = slot_of(keys[0])
        if slot in self.importing and asking:
            return
        if slot not in self.slots:
            owner = next((node for node in self.net.nodes.values() if slot in node.slots), None)
            raise Fault(f"MOVED {slot} {owner.address}" if owner else "CLUSTERDOWN Hash slot not served")
        missing = [key for key in keys if key not in self.keys.held]
        if slot in self.moving and missing:
            if len(missing) < len(keys):
                raise Fault("TRYAGAIN Multiple keys request during rehashing of slot")
            raise Fault(f"ASK {slot} {self.moving[slot].address}")


def _keys_of(words: Sequence[bytes]) -> Sequence[bytes]:
    name = words[0].upper()
    if name in (b"EVALSHA", b"EVAL"):
        return words[3 : 3 + int(words[2])]
    if name in (b"EXISTS", b"UNLINK"):
        return words[1:]
    return words[1:2]


def _client(node: FakeNode, connection: FakeConnection, words: Sequence[bytes]) -> Any:
    if words[1] == b"CACHING":
        connection.caching = True
    elif words[1] == b"KILL":
        asked = dict(zip(words[2::2], words[3::2], strict=True))
        told = [{b"ID": b"%d" % other.number, b"ADDR": other.address} for other in node.connections]
        victims = [other for other, own in zip(node.connections, told, strict=True) if asked.items() <= own.items()]
        for other in victims:
            other.end()
            node.connections.remove(other)
        return len(victims)
    elif words[1] == b"INFO":
        return b"id=%d addr=%b laddr=10.0.0.1:7000" % (connection.number, connection.address)
    return b"OK"


def _cluster_slots(node: FakeNode, _connection: FakeConnection, _words: Sequence[bytes]) -> Any:
    if not node.cluster:
        raise Fault("ERR This instance has cluster support disabled")
    return [row for other in node.net.nodes.values() for row in other.rows()]


def _asking(_node: FakeNode, connection: FakeConnection, _words: Sequence[bytes]) -> Any:
    connection.asking = True
    return b"OK"


def _load(node: FakeNode, _connection: FakeConnection, words: Sequence[bytes]) -> Any:
    node.loaded.append(words[2])
    return next(digest for digest, script in SCRIPTS.items() if script.source == words[2])


_HANDSHAKE = (b"HELLO", b"SCRIPT", b"CONFIG", b"DBSIZE", b"ROLE", b"INFO")
_CONFIG = {b"appendonly": b"yes", b"appendfsync": b"everysec", b"maxmemory-policy": b"noeviction"}

_ABOUT: dict[bytes, Callable[[FakeNode, FakeConnection, Sequence[bytes]], Any]] = {
    b"HELLO": lambda node, connection, _: {b"version": node.version, b"proto": 3, b"id": connection.number},
    b"CLIENT": _client,
    b"SCRIPT": _load,
    b"CONFIG": lambda _node, _connection, _words: dict(_CONFIG),
    b"CLUSTER": _cluster_slots,
    b"INFO": lambda _node, _connection, _words: b"# Memory\r\nused_memory:1000\r\nmaxmemory:0\r\n",
    b"TYPE": lambda _node, _connection, _words: b"none",
    b"ROLE": lambda node, _connection, _words: [b"master", 0, [[b"10.0.9.9", b"7000", b"0"]] * node.replicas],
    b"WAIT": lambda node, _connection, _words: node.replicas,
    b"ASKING": _asking,
}


class FakeConnection(ByteStream):
    """One client's connection, from both sides."""

    def __init__(self, node: FakeNode, number: int, address: bytes) -> None:
        self.number: int = number
        self.address = address
        self.asking = self.caching = False
        self._node = node
        self._unread: deque[list[list[bytes]]] = deque()
        self._out = bytearray()
        self._something = trio.Event()
        self._ended = self._stuck = self._left = False

    # The client's side

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._out:
            if self._ended:
                raise EndOfStream
            await self._something.wait()
            self._something = trio.Event()
        data = bytes(self._out[:max_bytes])
        del self._out[:max_bytes]
        return data

    async def send(self, item: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self._ended or self._left:
            raise BrokenResourceError
        self._unread.append(_parse(item))
        self.work()

    async def send_eof(self) -> None:
        raise AssertionError("nobody does")

    async def aclose(self) -> None:
        self._left = True
        if not self._unread and self in self._node.connections:
            self._node.connections.remove(self)
        await trio.lowlevel.checkpoint()

    # The node's

    def work(self) -> None:
        """Does what has come, also from a client that has left, until it was killed."""
        while self._unread and not self._node.silent and not self._ended:
            commands = self._unread.popleft()
            known = [tuple(words) for words in commands if words[0] not in _HANDSHAKE]
            if known:
                self._node.sent.append(known)
            for words in commands:
                if not self._ended and not self._stuck:
                    self._do(words)
        if self._left and not self._unread and self in self._node.connections:
            self._node.connections.remove(self)

    def _do(self, words: list[bytes]) -> None:
        try:
            answer = self._node.do(self, words)
        except Fault as fault:
            answer = fault
        if answer is HOLD:
            self._stuck = True
        else:
            self.say(answer)

    def say(self, answer: Any) -> None:
        """Answers the oldest command that is not answered yet."""
        self._out += _packed(answer)
        self._something.set()

    def push(self, kind: bytes, content: Any) -> None:
        """Tells something that is no answer."""
        self._out += b">2\r\n" + _packed(kind) + _packed(content)
        self._something.set()

    def end(self, *, losing: bool = False) -> None:
        """Closes it, behind what was said; or what was said is lost."""
        self._ended = True
        if losing:
            self._out.clear()
        self._something.set()
        for tracking in self._node.tracked.values():
            tracking.discard(self)


class FakeNet:
    """All nodes there are: coredis reaches these, and nothing else.

    Args:
        monkeypatch: of pytest.
        names: `host:port` each; the first one owns all slots.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.nodes = {address: FakeNode(self, address) for address in map(_address, names)}
        for node in list(self.nodes.values())[1:]:
            node.slots = set()

        async def connect(connection: TCPConnection) -> ByteStream:
            await trio.lowlevel.checkpoint()
            node = self.nodes.get(Address(connection.host, connection.port))
            if node is None:
                raise ConnectionRefusedError(111, "Connection refused")
            return node.connect()

        monkeypatch.setattr(TCPConnection, "_connect", connect)

    def __getitem__(self, name: str) -> FakeNode:
        return self.nodes[_address(name)]


def _address(name: str) -> Address:
    host, _, port = name.rpartition(":")
    return Address(host, int(port))


def _packed(value: Any) -> bytes:
    """A value in RESP3."""
    if value is None:
        return b"_\r\n"
    if isinstance(value, Fault):
        return b"-%b\r\n" % str(value).encode()
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, dict):
        return b"%%%d\r\n" % len(value) + b"".join(_packed(part) for pair in value.items() for part in pair)
    return b"*%d\r\n" % len(value) + b"".join(map(_packed, value))


def _parse(data: bytes) -> list[list[bytes]]:
    """Commands, as coredis sends them: always whole ones."""
    commands, at = [], 0

    def line() -> int:
        nonlocal at
        end = data.index(b"\r\n", at)
        number, at = int(data[at + 1 : end]), end + 2
        return number

    while at < len(data):
        words = []
        for _ in range(line()):
            length = line()
            words.append(data[at : at + length])
            at += length + 2
        commands.append(words)
    return commands


class Steps(trio.abc.Instrument):
    """How much something grows in each step of a task."""

    def __init__(self, size: Callable[[], int]) -> None:
        self.growth: list[int] = []
        self._size = size
        self._before = 0

    def __enter__(self) -> Steps:
        self._before = self._size()
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        before, self._before = self._before, self._size()
        self.growth.append(self._before - before)
