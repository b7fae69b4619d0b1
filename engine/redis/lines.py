"""Lines: who waits for a value of which queue, first come, first served; at the cost of no connection.

A line is tried: one script takes as many values as there are clients in it. If there are none, Redis tells us when
the key changes (`CLIENT TRACKING`, see engine/redis/link.py), and the line is tried again; and so it is when the slot
has a new master. Nobody is asked anything meanwhile, however many wait; and who pushes pays nothing for those who wait.

    idle --try--> trying --nothing there--> watched --key changed--> trying
                         --some values----> trying, until nobody is left or nothing is there

The rules that hold here:

- One try of a line is under way at a time; what happens meanwhile has it tried once more.
- A client whose time is up gets null, but not before a try that began after it came has ended without a value for it.
- A value that finds nobody left goes back.
- Who waits already keeps waiting while the key holds something else, or its master cannot be reached or has too few
  replicas. Who comes then is refused.
- First come, first served holds within this front. Between fronts the first to ask is served.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import trio
from coredis.exceptions import WrongTypeError
from sortedcontainers import SortedList

from engine.calls import PARKED, Call
from engine.redis.errors import Lost, NotReplicated, NotSent
from engine.redis.faults import refusal
from engine.redis.queues import first_values
from engine.redis.receipts import FIRST, Posts, Receipt, Receipts, receipts_in, values_in
from engine.redis.request import Request, script_call
from engine.redis.scripts import ALONE
from engine.redis.slots import SLOTS
from engine.replies import NULL, Reply, Value

TAKE_MAX = 64
TAKE_BYTES_MAX = 1024 * 1024
"""Values of one try, and their bytes: each goes to a client in the event loop."""

TRY_AGAIN_S = 0.25
"""Until the next try of a line that could not be tried; or whose slot is being moved, for then the new master is asked
before it is the owner, and does not tell when the key changes."""

REFUSED_S = 2.0
"""The same for one that nothing was sent for: that its master can be reached, and takes writes, again is told; this is
for what nobody has thought of, and very many lines may wait for it.
"""

SHORT_S = 1.0
"""Who waits no longer than this has the line tried, though it is watched: to hear of a change could take as long."""

TRIES_MAX = 128
"""Lines tried in one go when many have to be."""

TELL_MAX = 256
"""Clients that are told in one go that their time is up, or that the server stops."""

_ALL_SLOTS = range(SLOTS)


@dataclass(slots=True, eq=False)
class _Waiting:
    call: Call
    deadline_s: float


@dataclass(slots=True, eq=False)
class _Line:
    """Who waits for one queue.

    Attributes:
        waiting: by ticket, the oldest first.
        late: tickets of those whose time is up, and who are to be told when a try has ended.
        trying: whether a try is under way.
        again: whether to try once more after it.
        watched: whether the last one has found nothing, and Redis tells when there may be something.
        covered: the last ticket that the try under way is for.
        seen: the last ticket for which one has ended.
        later: whether it will be tried before long, because the last try has failed.
    """

    waiting: OrderedDict[int, _Waiting] = field(default_factory=OrderedDict)
    late: dict[int, None] = field(default_factory=dict)
    trying: bool = False
    again: bool = False
    watched: bool = False
    covered: int = 0
    seen: int = 0
    later: bool = False


class Lines:
    """All who wait, over all queues.

    Args:
        router: sends requests.
        receipts: of what is popped.
        answer: called with a call and its reply; what was popped is in `call.taken`.
    """

    def __init__(self, router: Posts, receipts: Receipts, answer: Callable[[Call, Reply], None]) -> None:
        self._router = router
        self._receipts = receipts
        self._answer = answer
        self._lines: dict[bytes, _Line] = {}
        self._tickets = 0
        self._count = 0
        self._deadlines: SortedList[tuple[float, int, bytes]] = SortedList()
        self._later: SortedList[tuple[float, bytes]] = SortedList()
        self._concerned: set[int] = set()
        self._backlog: deque[bytes] = deque()
        self._nudged = trio.Event()
        self._away: Reply | None = None  # what those in `_leaving` are answered
        self._leaving: deque[tuple[int, bytes]] = deque()

    def __len__(self) -> int:
        return self._count

    @property
    def trying(self) -> bool:
        """Whether a try is under way, which may bring values."""
        return any(line.trying for line in self._lines.values())

    # For those who wait

    def park(self, call: Call) -> None:
        """Has a blocking pop take a value, or wait for one."""
        command: Any = call.command  # one of those whose row says `waits`
        timeout_s = math.inf if command.timeout_ms is None else command.timeout_ms / 1000
        self._tickets += 1
        waiting = _Waiting(call, trio.current_time() + timeout_s)
        line = self._lines.get(command.key)
        if line is None:
            line = self._lines[command.key] = _Line()
        line.waiting[self._tickets] = waiting
        if timeout_s == 0:
            line.late[self._tickets] = None
        elif timeout_s < math.inf:
            self._deadlines.add((waiting.deadline_s, self._tickets, command.key))
            self._nudged.set()
        self._count += 1
        call.stage = PARKED
        call.waiter = (self._tickets, command.key)
        if line.watched and timeout_s >= SHORT_S and self._router.takes_writes(self._router.slot_of(command.key)):
            line.seen = self._tickets
        else:
            self._try(command.key, line)

    def leave(self, call: Call) -> None:
        """The client of a parked call is gone."""
        ticket, key = call.waiter
        self._take_out(ticket, key)

    def turn_away(self, reply: Reply) -> None:
        """Has everybody answered, as many as are told in one go, and nothing more taken for them."""
        self._away = reply
        self._leaving.extend((ticket, key) for key, line in self._lines.items() for ticket in line.waiting)
        self._nudged.set()

    def _take_out(self, ticket: int, key: bytes) -> _Waiting:
        line = self._lines[key]
        waiting = line.waiting.pop(ticket)
        waiting.call.waiter = None
        self._count -= 1
        if ticket in line.late:
            del line.late[ticket]
        elif waiting.deadline_s < math.inf:
            self._deadlines.discard((waiting.deadline_s, ticket, key))
        if not line.waiting and not line.trying:
            del self._lines[key]
        return waiting

    # What happens

    def key_changed(self, key: bytes) -> None:
        """There may be something in a queue now."""
        line = self._lines.get(key)
        if line is not None:
            self._try(key, line)

    def try_all(self, slots: Iterable[int] = _ALL_SLOTS) -> None:
        """Has all lines of some slots tried, some at a time, behind what goes back."""
        self._concerned.update(slots)  # lines are looked through once, however many slots move one by one
        self._nudged.set()

    async def run(self) -> None:
        """Tells those whose time is up, and tries what has to be tried, until it is cancelled."""
        while True:
            if self._backlog or self._leaving:
                await trio.lowlevel.checkpoint()
            else:
                due_s = self._deadlines[0][0] if self._deadlines else math.inf
                with trio.move_on_at(min(due_s, self._later[0][0] if self._later else math.inf)):
                    await self._nudged.wait()
            self._nudged = trio.Event()
            now_s = trio.current_time()
            self._tell_leaving()
            self._time_out(now_s)
            self._gather(now_s)
            for _ in range(min(TRIES_MAX, len(self._backlog))):
                self.key_changed(self._backlog.popleft())

    def _tell_leaving(self) -> None:
        for _ in range(min(TELL_MAX, len(self._leaving))):
            ticket, key = self._leaving.popleft()
            if key in self._lines and ticket in self._lines[key].waiting:
                assert self._away is not None, "it was set before them"
                self._answer(self._take_out(ticket, key).call, self._away)

    def _time_out(self, now_s: float) -> None:
        for _ in range(TELL_MAX):
            if not self._deadlines or self._deadlines[0][0] > now_s:
                return
            _, ticket, key = self._deadlines.pop(0)
            line = self._lines[key]
            if ticket <= line.seen:
                self._answer(self._take_out(ticket, key).call, NULL)
            else:
                line.late[ticket] = None

    def _gather(self, now_s: float) -> None:
        """Finds the lines that have to be tried."""
        while self._later and self._later[0][0] <= now_s:
            _, key = self._later.pop(0)
            if key in self._lines:
                self._lines[key].later = False
            self._backlog.append(key)
        if self._concerned:
            self._receipts.give_back()
            self._backlog += [key for key in self._lines if self._router.slot_of(key) in self._concerned]
            self._concerned.clear()

    # Trying

    def _try(self, key: bytes, line: _Line) -> None:
        if line.trying:
            line.again = True
            return
        if self._away is not None:
            return
        line.trying, line.again, line.watched = True, False, False
        line.covered = next(reversed(line.waiting))
        count = min(len(line.waiting), TAKE_MAX)
        token = self._receipts.new_tokens(count)
        tokens = range(token, token + count)
        slot = self._router.slot_of(key)
        words = (*first_values(count, TAKE_BYTES_MAX), self._receipts.key_for(slot), token)
        request: Request
        request = script_call(
            ALONE["BQPOP"], (key,), words, slot, lambda result: self._tried(key, request, tokens, result), tracked=True
        )
        self._router.post(request)

    def _tried(self, key: bytes, request: Request, tokens: range, result: Any) -> None:
        """A try has ended.

        Until all is done that follows from it the line counts as being tried: answers are delivered from within, and
        whoever gets one may come back at once.
        """
        line = self._lines[key]
        failure = result if isinstance(result, Exception) else None
        taken: Any = result.result if isinstance(result, NotReplicated) else result
        values, receipts = values_in(taken), receipts_in(taken, tokens.start, key, FIRST)
        if failure is None:
            self._serve(key, line, receipts, values)
        else:
            if isinstance(failure, Lost):
                receipts = [Receipt(token, key) for token in tokens]
            self._receipts.take_back(receipts)
            self._refuse(key, line, failure)
            values = []
        if not values:
            line.seen = max(line.seen, line.covered)
            self._tell_late(key, line)
        line.trying = False
        line.watched = failure is None and not values and not request.asking
        told = line.watched or (isinstance(failure, WrongTypeError) and not request.asking)
        if not line.waiting:
            del self._lines[key]
        elif values or (line.again and told) or next(reversed(line.waiting)) > line.covered:
            if failure is None:
                self._try(key, line)
            else:  # it may fail again from within, and who is refused come back, and so on
                self._backlog.append(key)
                self._nudged.set()
        elif not told:
            self._try_later(key, line, REFUSED_S if isinstance(failure, NotSent) else TRY_AGAIN_S)

    def _serve(self, key: bytes, line: _Line, receipts: list[Receipt], values: list[bytes]) -> None:
        for index, (receipt, value) in enumerate(zip(receipts, values, strict=True)):
            if not line.waiting:
                self._receipts.take_back(receipts[index:])
                break
            call = self._take_out(next(iter(line.waiting)), key).call
            call.taken.append(receipt)
            self._answer(call, Value(value))

    def _try_later(self, key: bytes, line: _Line, pause_s: float) -> None:
        if not line.later:
            line.later = True
            self._later.add((trio.current_time() + pause_s, key))
            self._nudged.set()

    def _refuse(self, key: bytes, line: _Line, failure: Exception) -> None:
        """Answers those for whom a try has failed: who came since the last one.

        If it got lost only those whose time is up: the others may well wait until the master can be reached again.
        """
        fresh = takewhile(lambda ticket: ticket > line.seen, reversed(line.waiting))
        concerned = sorted(ticket for ticket in fresh if ticket <= line.covered)
        if isinstance(failure, Lost):
            concerned = [ticket for ticket in concerned if ticket in line.late]
        for ticket in concerned:
            if ticket in line.waiting:
                call = self._take_out(ticket, key).call
                self._answer(call, refusal(failure, call.command))

    def _tell_late(self, key: bytes, line: _Line) -> None:
        """Answers those whose time was up while the try was under way."""
        for ticket in list(line.late):
            if ticket <= line.seen and ticket in line.waiting:
                self._answer(self._take_out(ticket, key).call, NULL)
