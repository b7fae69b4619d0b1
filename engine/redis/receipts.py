"""Receipts: what was popped in Redis and is not handed over yet, so that it goes back exactly once if it never will be.

A pop takes a value out of its queue and leaves a receipt, in one script. It is thrown away when the answer was handed
to the transport; and taken, with the value put back, when the client has left or the answer never reached us. Only the
receipt counts: a master that has taken over may know nothing of the pop, and then it has the value still. It may know
nothing either of values that were put back, so that is done again until as many replicas have it as we wait for.

Where a slot is being moved there may be no room for a receipt. Then the value itself is kept here, and goes back once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

import trio

from engine.frozen import frozen
from engine.redis.errors import Lost, NotReplicated, NotSent
from engine.redis.format import receipts_key
from engine.redis.request import Request, script_call
from engine.redis.scripts import GIVE_BACK
from engine.redis.slots import slot_tags

FIRST, LAST = b"<", b">"
"""The end of the queue that a value was taken from, as receipts have it."""

CONFIRM_S = 0.25
"""Between two sendings of what was handed over; so long receipts take up memory."""

RETRY_S = 0.5
"""Between two attempts to put back what could not be."""

TOKENS_MAX = 256
"""Receipts of one request."""

AT_ONCE_MAX = 1024
"""Receipts that are dealt with in one turn of the event loop."""

GIVE_BACK_BYTES_MAX = 1024 * 1024
"""Values of one request, in bytes; one alone may have more."""


@frozen
class Receipt:
    """A popped value.

    Attributes:
        token: its number among all pops of this front, by which Redis knows it.
        key: of its queue.
        body: the end, the queue's mark and the value, if Redis has no receipt of it; else empty.
    """

    token: int
    key: bytes
    body: bytes = b""


def values_in(answer: Any) -> list[bytes]:
    """The values that a pop has taken, by its answer; none if that is no list."""
    return answer[1:] if isinstance(answer, list) else []


def receipts_in(answer: Any, token: int, key: bytes, end: bytes) -> list[Receipt]:
    """What is to be kept of a pop whose answer has come.

    Args:
        answer: the mark of the queue, if Redis has no receipts of the values, else nothing; and the values. No list if
            there were none.
        token: the number of the first one, the others have those behind it.
        key: of the queue.
        end: from which they were taken.
    """
    receipts: list[Receipt] = []
    for value in values_in(answer):  # most often there is one, for which a comprehension takes twice as long
        receipts.append(Receipt(token, key, end + answer[0] + value if answer[0] else b""))
        token += 1
    return receipts


class Posts(Protocol):
    """What is needed of the router."""

    def post(self, request: Request) -> None:
        """Sends a request."""

    def slot_of(self, key: bytes) -> int:
        """The slot of a key."""

    def is_up(self, slot: int) -> bool:
        """Whether the master of a slot can be reached."""

    def takes_writes(self, slot: int) -> bool:
        """Whether it can be reached, and replicas enough follow it."""


class Receipts:
    """All receipts of this front.

    Args:
        front: its name in Redis.
        router: sends requests.

    Attributes:
        returned_values: number of values put back since the start.
        insists: whether values go back even while too few replicas are there to follow.
    """

    def __init__(self, front: bytes, router: Posts) -> None:
        self.returned_values = 0
        self.insists = False
        slot_tags()  # takes 0.1 s once, which shall not be at the first pop
        self._front = front
        self._router = router
        self._token = 0
        self._handed_over: list[Receipt] = []
        self._abandoned: list[Receipt] = []
        self._returning = 0
        self._settled, self._taken_back = trio.Event(), trio.Event()

    @property
    def owed(self) -> int:
        """How many values, or perhaps values, are still to be put back."""
        return len(self._abandoned) + self._returning

    def key_for(self, slot: int) -> bytes:
        """The key of this front's receipts for a slot."""
        return receipts_key(slot, self._front)

    def new_tokens(self, count: int) -> int:
        """Returns the first of so many new tokens."""
        token = self._token + 1
        self._token += count
        return token

    def settle(self, receipts: Iterable[Receipt]) -> None:
        """These were handed over: they are thrown away before long."""
        self._handed_over += receipts
        self._settled.set()

    def take_back(self, receipts: Iterable[Receipt]) -> None:
        """These go back, as soon as their master takes them."""
        self._abandoned += receipts
        self._taken_back.set()

    async def run(self) -> None:
        """Sends what has come together, until it is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_returns)
            nursery.start_soon(self._run_confirmations)

    async def _run_returns(self) -> None:
        while True:
            with trio.move_on_after(RETRY_S if self.owed else math.inf):  # what is under way may come back refused
                await self._taken_back.wait()
            self._taken_back = trio.Event()
            self.give_back()

    async def _run_confirmations(self) -> None:
        while True:
            await self._settled.wait()
            await trio.sleep(CONFIRM_S)
            self._settled = trio.Event()
            for some in self._take_handed_over():
                self._confirm(some)
                await trio.lowlevel.checkpoint()

    def confirm(self) -> None:
        """Has the receipts of everything that was handed over thrown away, now."""
        for some in self._take_handed_over():
            self._confirm(some)

    def _take_handed_over(self) -> Iterator[list[Receipt]]:
        """What was handed over, some at a time; what comes meanwhile is for the next time."""
        handed_over, self._handed_over = self._handed_over, []
        for start in range(0, len(handed_over), AT_ONCE_MAX):
            yield handed_over[start : start + AT_ONCE_MAX]

    def _confirm(self, handed_over: Sequence[Receipt]) -> None:
        by_slot: defaultdict[int, list[Receipt]] = defaultdict(list)
        for receipt in handed_over:
            by_slot[self._router.slot_of(receipt.key)].append(receipt)
        for slot, receipts in by_slot.items():
            for start in range(0, len(receipts), TOKENS_MAX):
                some = receipts[start : start + TOKENS_MAX]
                words: list[bytes | int] = [self.key_for(slot), *(receipt.token for receipt in some)]
                self._router.post(Request(b"HDEL", tuple(words), slot, partial(self._confirmed, some)))

    def _confirmed(self, receipts: Sequence[Receipt], result: Any) -> None:
        """Says it again when it got lost: receipts do not expire as long as this front pops in their slot."""
        if isinstance(result, (Lost, NotSent)):
            self._handed_over += receipts
            self._settled.set()

    def give_back(self) -> None:
        """Puts back what can be, the last pop first, so that the old order is restored; of very much the rest later."""
        going, staying = 0, []
        can_go = self._router.is_up if self.insists else self._router.takes_writes
        by_key: defaultdict[bytes, list[Receipt]] = defaultdict(list)
        self._abandoned.sort(key=attrgetter("token"))
        while self._abandoned and going < AT_ONCE_MAX:
            receipt = self._abandoned.pop()
            if can_go(self._router.slot_of(receipt.key)):
                by_key[receipt.key].append(receipt)
                going += 1
            else:
                staying.append(receipt)
        if self._abandoned:
            self._taken_back.set()
        self._abandoned += staying
        for key, receipts in by_key.items():
            for some in _portions(receipts):
                self._post(key, some)

    def _post(self, key: bytes, receipts: Sequence[Receipt]) -> None:
        slot = self._router.slot_of(key)
        words: list[int | bytes] = [self.key_for(slot)]
        for receipt in receipts:
            words += (receipt.token, receipt.body)
        self._returning += len(receipts)
        done = partial(self._returned, receipts)
        self._router.post(script_call(GIVE_BACK, (key,), tuple(words), slot, done, insists=self.insists))

    def _returned(self, receipts: Sequence[Receipt], result: Any) -> None:
        self._returning -= len(receipts)
        if isinstance(result, NotReplicated):
            self.returned_values += result.result
            if self.insists:
                return  # it is back, and nobody stays to look again
        elif not isinstance(result, Exception):
            self.returned_values += result
            return
        once = isinstance(result, (Lost, NotReplicated))  # perhaps at least
        self._abandoned += [Receipt(receipt.token, receipt.key) for receipt in receipts] if once else receipts


def _portions(receipts: list[Receipt]) -> Iterable[list[Receipt]]:
    """Some at a time, in order."""
    some: list[Receipt] = []
    some_bytes = 0
    for receipt in receipts:
        if some and (len(some) == TOKENS_MAX or some_bytes + len(receipt.body) > GIVE_BACK_BYTES_MAX):
            yield some
            some, some_bytes = [], 0
        some.append(receipt)
        some_bytes += len(receipt.body)
    yield some
