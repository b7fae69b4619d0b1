"""What a connection sends: order, short writes, and when a popped value is handed over (api/door/outbox.py)."""

from __future__ import annotations

import errno
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects.request import Dialect, Request
from api.door.exchange import Exchange
from api.door.outbox import Outbox
from api.door.request import RequestHead
from api.door.responses import Responses
from engine.calls import Call, Stage
from engine.commands.queues import BQPop
from engine.commands.server import Ping
from engine.embedded.pops import Taken
from engine.replies import Value
from engine.store.store import Queue

HEAD = RequestHead(b"POST", b"/", "1.1", (), "/", 0, True, False, None)
GONE = OSError(errno.ECONNRESET, "Connection reset by peer")


class Kernel:
    """Stands where the socket does: takes at each `send` as many bytes as it was told, or fails.

    Attributes:
        takes: what the next sends do; then nothing more is taken.
        taken: all bytes that it was given.
    """

    def __init__(self, *takes: int | OSError) -> None:
        self.takes = list(takes)
        self.taken = b""

    def send(self, data: bytes) -> int:
        takes = self.takes.pop(0) if self.takes else BlockingIOError()
        if isinstance(takes, OSError):
            raise takes
        self.taken += bytes(data[:takes])
        return min(takes, len(data))


class Books:
    """Stands where connection, what is shared, and engine do, and notes which calls were settled or withdrawn."""

    closing = False

    def __init__(self) -> None:
        self.settled: list[Call] = []
        self.withdrawn: list[Call] = []
        self.shared = self.engine = self
        self.responses = Responses()

    def complete(self, exchange: Exchange, response: bytes) -> None:
        pass

    def settle(self, call: Call) -> None:
        self.settled.append(call)

    def withdraw(self, call: Call) -> None:
        self.withdrawn.append(call)

    def exchange(self, response: bytes, *, popped: bool = False) -> Exchange:
        exchange = Exchange(cast(Any, self), HEAD)
        exchange.response = response
        if popped:
            exchange.call = Call(BQPop(b"q"), lambda _call: None, Stage.ANSWERED)
        return exchange


def outbox(kernel: Kernel) -> Outbox:
    return Outbox(cast(Any, kernel))


def test_several_answers_leave_in_one_send() -> None:
    kernel, books = Kernel(100), Books()
    outbox(kernel).put([books.exchange(b"one"), books.exchange(b"two")])
    assert kernel.taken == b"onetwo"


def test_e5_a_popped_value_is_handed_over_with_the_first_byte_of_its_answer() -> None:
    """E5"""
    kernel, books = Kernel(4), Books()
    first, second, third = (books.exchange(response, popped=True) for response in (b"one", b"two", b"three"))
    calls = [first.call, second.call, third.call]
    box = outbox(kernel)
    box.put([first, second, third])
    assert books.settled == calls[:2]
    kernel.takes = [2]
    box.flush()
    assert books.settled == calls[:2]
    assert box.drop() == [third]


def test_e5_nothing_is_handed_over_to_a_client_that_is_gone() -> None:
    """E5"""
    books = Books()
    box = outbox(Kernel(GONE))
    with pytest.raises(ConnectionResetError):
        box.put([books.exchange(b"one", popped=True)])
    assert books.settled == []
    assert box.drop() == []  # it was not taken over: it is still the connection's


def test_e5_a_client_that_goes_in_between_takes_what_was_begun_and_leaves_the_rest() -> None:
    """E5, F5: the count of unsent bytes holds too."""
    kernel, books = Kernel(0), Books()
    box = outbox(kernel)
    begun, left = books.exchange(b"one", popped=True), books.exchange(b"two", popped=True)
    box.put([begun])
    box.put([left])
    kernel.takes = [3, GONE]
    box.flush()
    assert len(books.settled) == 1
    assert box.unsent_bytes == 3
    with pytest.raises(ConnectionResetError):
        box.flush()
    assert box.unsent_bytes == 3
    assert box.drop() == [left]


@given(
    st.lists(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.booleans()), min_size=1, max_size=4), max_size=6),
    st.lists(st.integers(0, 12) | st.none(), max_size=30),
)
def test_what_arrives_is_what_was_put_whatever_the_kernel_takes(
    puts: list[list[tuple[bytes, bool]]], takes: list[int | None]
) -> None:
    """E5, F5: after each step the kernel has a prefix of the answers, and exactly the pops begun in it are settled."""
    kernel, books = Kernel(), Books()
    box = outbox(kernel)
    put: list[tuple[int, Call]] = []
    sent = b""
    for step, give in enumerate(takes):
        kernel.takes = [] if give is None else [give]
        if step < len(puts):
            exchanges = []
            for response, popped in puts[step]:
                exchanges.append(books.exchange(response, popped=popped))
                if popped:
                    assert isinstance(exchanges[-1].call, Call)
                    put.append((len(sent), exchanges[-1].call))
                sent += response
            box.put(exchanges)
        elif box.unsent_bytes:
            box.flush()
        assert sent == kernel.taken + sent[len(sent) - box.unsent_bytes :]
        assert books.settled == [call for begins_at, call in put if begins_at < len(kernel.taken)]
    left = [exchange.call for exchange in box.drop()]
    assert left == [call for begins_at, call in put if begins_at >= len(kernel.taken)]


def test_only_a_call_that_popped_something_is_kept_until_its_answer_is_sent() -> None:
    """Else call and exchange would hold each other, and be garbage for the collector."""
    books = Books()
    for taken in ([], [Taken(1, Queue(), (0, b"q", b"v"))]):
        exchange = books.exchange(b"")
        exchange.request = Request([], Dialect.LINE)
        exchange.call = call = Call(Ping(), exchange.deliver, Stage.SETTLED, reply=Value(b"PONG"), taken=taken)
        exchange.deliver(call)
        assert exchange.call is (call if taken else None)
        exchange.settle()
        assert exchange.call is None
        assert books.settled == [call] * len(taken)
