"""Clients on raw sockets, for what wrk cannot do: hand a value to a parked client, and speak beanstalkd's protocol.

They are Python. What they take themselves is told in the table; for a hand-over it is the same for all servers, some 20
of several hundred microseconds.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tests.bench.peers import NotMeasured, resp
from tests.bench.wrk import CLIENT, P50_MS, P99_MS, P999_MS, PER_S, Sample

ANSWER_WITHIN_S = 30.0
PAUSE_S = 0.001
"""Between two hand-overs, so that the client is parked and the server at rest when the value comes."""

Address = tuple[str, int]
HandOver = Callable[[Address, float], Sample]


@dataclass(frozen=True)
class Exchange:
    """Bytes to send, and what the answer begins and ends with."""

    request: bytes
    begins: bytes
    ends: bytes


def http(address: Address, command: str, ends: bytes) -> Exchange:
    """A command in Holdfast's line dialect."""
    body = b'{"command": "%b"}' % command.encode()
    head = f"POST / HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nContent-Length: {len(body)}\r\n\r\n"
    return Exchange(head.encode() + body, b"HTTP/1.1 200 ", ends)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least so many percent of them do not exceed."""
    assert ordered, "no values"
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def sample_of(latencies_s: list[float], wall_s: float, cpu_s: float) -> Sample:
    """What latencies of single requests come to."""
    latencies_s.sort()
    return {
        PER_S: len(latencies_s) / wall_s,
        P50_MS: percentile(latencies_s, 50) * 1000,
        P99_MS: percentile(latencies_s, 99) * 1000,
        P999_MS: percentile(latencies_s, 99.9) * 1000,
        CLIENT: cpu_s / wall_s,
    }


class Wire:
    """One connection of a client."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, timeout=ANSWER_WITHIN_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def send(self, exchange: Exchange) -> None:
        """Sends a request."""
        self.socket.sendall(exchange.request)

    def receive_some(self, exchange: Exchange) -> bytes:
        """Reads once; returns the answer when it is complete, until then nothing.

        Raises:
            NotMeasured: it is not the expected one.
        """
        more = self.socket.recv(65_536)
        self._received += more
        if not more or not self._received.startswith(exchange.begins[: len(self._received)]):
            raise NotMeasured(f"{self._received[:100]!r} is the answer to {exchange.request[:60]!r}")
        if not self._received.endswith(exchange.ends):
            return b""
        answer, self._received = self._received, b""
        return answer

    def receive(self, exchange: Exchange) -> bytes:
        """Reads until the answer is complete.

        Raises:
            NotMeasured: it is not the expected one.
        """
        while not (answer := self.receive_some(exchange)):
            pass
        return answer

    def ask(self, exchange: Exchange) -> None:
        """Sends a request and reads its answer."""
        self.send(exchange)
        self.receive(exchange)


def hand_over(
    address: Address,
    seconds: float,
    park: Exchange,
    push: Exchange,
    then: Callable[[bytes], Exchange] | None = None,
    push_at: Address | None = None,
) -> Sample:
    """How long a value takes from the moment its push is sent until the parked client has it.

    Args:
        address: of the server.
        seconds: how long this is repeated.
        park: what the receiving client waits with.
        push: what the other one sends.
        then: what the receiving client has to say about the value, outside of the time that is taken.
        push_at: where the other one sends it, if not there.

    Raises:
        NotMeasured: an answer is not the expected one.
    """
    latencies_s: list[float] = []
    receiver, pusher = Wire(address), Wire(push_at or address)
    with receiver.socket, pusher.socket:
        started_s, before_s = time.perf_counter(), time.process_time()
        while time.perf_counter() - started_s < seconds:
            receiver.send(park)
            time.sleep(PAUSE_S)
            sent_s = time.perf_counter()
            pusher.send(push)
            answer = receiver.receive(park)
            latencies_s.append(time.perf_counter() - sent_s)
            pusher.receive(push)
            if then is not None:
                receiver.ask(then(answer))
        sample = sample_of(latencies_s, time.perf_counter() - started_s, time.process_time() - before_s)
    return {name: sample[name] for name in (P50_MS, P99_MS)}  # a rate with pauses in between means nothing


def holdfast_hand_over(address: Address, seconds: float, push_at: Address | None = None) -> Sample:
    """QPUSH to a parked BQPOP, of the same server or of another one."""
    park, push = http(address, "BQPOP jobs", b'"}'), http(push_at or address, "QPUSH jobs value", b"\r\n\r\n")
    return hand_over(address, seconds, park, push, push_at=push_at)


def redis_hand_over(address: Address, seconds: float) -> Sample:
    """RPUSH to a parked BLPOP."""
    park = Exchange(resp("BLPOP", "jobs", "0"), b"*2\r\n", b"value\r\n")
    return hand_over(address, seconds, park, Exchange(resp("RPUSH", "jobs", "value"), b":", b"\r\n"))


PUT = Exchange(b"put 0 0 60 5\r\nvalue\r\n", b"INSERTED ", b"\r\n")
RESERVE = Exchange(b"reserve\r\n", b"RESERVED ", b"value\r\n")


def delete(reserved: bytes) -> Exchange:
    """Deletes the job that was reserved."""
    return Exchange(b"delete %b\r\n" % reserved.split()[1], b"DELETED", b"\r\n")


def beanstalkd_hand_over(address: Address, seconds: float) -> Sample:
    """A put to a client parked in reserve, which deletes the job afterwards."""
    return hand_over(address, seconds, RESERVE, PUT, delete)


class Worker:
    """One connection to beanstalkd that puts a job, then reserves and deletes one, over and over; it never blocks."""

    def __init__(self, address: Address) -> None:
        self.wire = Wire(address)
        self.latencies_s: list[float] = []
        self._begin(PUT)

    def go_on(self) -> None:
        """Reads what there is; when that completes an answer, sends the next request.

        A put counts as one request, and a reserve with its delete, too.
        """
        answer = self.wire.receive_some(self._awaited)
        if not answer:
            return
        if self._awaited is RESERVE:
            self._send(delete(answer))
            return
        self.latencies_s.append(time.perf_counter() - self._sent_s)
        self._begin(RESERVE if self._awaited is PUT else PUT)

    def _begin(self, exchange: Exchange) -> None:
        self._sent_s = time.perf_counter()
        self._send(exchange)

    def _send(self, exchange: Exchange) -> None:
        self._awaited = exchange
        self.wire.send(exchange)


def put_and_take(address: Address, seconds: float, connections: int) -> Sample:
    """put, then reserve and delete, over and over, from so many connections to beanstalkd.

    Raises:
        NotMeasured: an answer is not the expected one.
    """
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        workers = [Worker(address) for _ in range(connections)]
        for worker in workers:
            stack.enter_context(worker.wire.socket)
            selector.register(worker.wire.socket, selectors.EVENT_READ, worker)
        started_s, before_s = time.perf_counter(), time.process_time()
        while time.perf_counter() - started_s < seconds:
            for key, _ in selector.select(ANSWER_WITHIN_S):
                key.data.go_on()
        wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - before_s
    return sample_of([latency for worker in workers for latency in worker.latencies_s], wall_s, cpu_s)
