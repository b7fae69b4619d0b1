"""The search for an order of the commands on keys that are judged together; see linearizability.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from tests.simulate.history import Life, Operation, Request, Violation
from tests.simulate.shelf import CHANGING, NULL, SLACK_MS, Deadline, Entry, Plain, Queue, Rules, Shelf, gone_mark

SHOWN_OPERATIONS = 25
SHELVES_MAX = 200_000
"""A search beyond this is given up; no seed comes near."""

Content = dict[bytes, tuple[object, ...]]
"""What a start found, by key."""

Claim = frozenset[tuple[int, range]]
"""How many of its first commands may have been done, of each batch that others have a share in, by number."""


class Share:
    """What of a request is about the keys of one search.

    Args:
        request: the whole.
        operations: the part, in order.
        is_shared: whether other searches have a share in it.
    """

    def __init__(self, request: Request, operations: tuple[Operation, ...], *, is_shared: bool) -> None:
        self.request = request
        self.operations = operations
        self.is_shared = is_shared
        self.numbers = [operation.number for operation in operations]
        self.marks = {*self.numbers, gone_mark(request.number)}

    def step(self, shelf: Shelf) -> tuple[Operation, ...]:
        """What of it is to be done next: one command, or all of a unit; nothing when no more will be done, or waits."""
        if gone_mark(self.request.number) in shelf.done:
            return ()
        if self.request.atomic:
            return () if self.is_begun(shelf) else self.operations
        done = self._done(shelf)
        step = self.operations[done : done + 1]
        return () if step and shelf.is_waiting(step[0]) else step

    def is_begun(self, shelf: Shelf) -> bool:
        """Whether some of it is done."""
        return self.numbers[0] in shelf.done

    def is_done(self, shelf: Shelf) -> bool:
        """Whether all of it is done."""
        return self.numbers[-1] in shelf.done

    def is_done_or_waits(self, shelf: Shelf) -> bool:
        """Whether nothing of it is left to be done at once."""
        return self.is_done(shelf) or shelf.is_waiting(self.operations[-1])

    def has_arrived_at(self, now_ms: int, *, may_refuse: bool) -> bool:
        """Whether it has surely reached the store, and has not been refused, in an instant that is over now."""
        first = self.operations[0]
        if first.name == b"BQPOP" and first.timeout_ms != 0 and first.invoked_ms == now_ms:
            return True
        was_noticed = self.request.reached_ms == now_ms
        return was_noticed and (first.answer is not None or not (self.request.atomic or may_refuse))

    def lengths(self, shelf: Shelf) -> range:
        """How many of the request's first commands may have been done, as far as this share can tell."""
        whole = len(self.request.operations)
        if self.request.atomic:
            return range(whole, whole + 1) if self.is_begun(shelf) else range(1)
        done = self._done(shelf)
        least = self.operations[done - 1].place + 1 if done else 0
        most = self.operations[done].place if done < len(self.operations) else whole
        return range(least, most + 1)

    def _done(self, shelf: Shelf) -> int:
        return sum(number in shelf.done for number in self.numbers)


class Moment(NamedTuple):
    """What may have been after an event: its place in the life, the time, the shelves, what was in flight, in doubt."""

    event: int
    now_ms: int
    shelves: set[Shelf]
    pending: tuple[Share, ...]
    doubted: tuple[Share, ...]


class Match(NamedTuple):
    """Shelves that hold what was found, with a note of what is done of batches that others share."""

    parts: list[Share]
    shelves: set[Shelf]


class Search:
    """The shelves that one group of keys may be at.

    Args:
        keys: the group.
        rules: what commands do.
        operations: of the life, by number.

    Attributes:
        now_ms: virtual time.
    """

    def __init__(self, keys: tuple[bytes, ...], rules: Rules, operations: dict[int, Operation]) -> None:
        self.now_ms = 0
        self._keys = keys
        self._rules = rules
        self._operations = operations
        self._shelves = {Shelf(tuple((key, None) for key in keys))}
        self._pending: dict[int, Share] = {}
        self._doubted: dict[int, Share] = {}
        self._moments: list[Moment] = []
        self._changed = False
        self._past: list[Operation] = []
        self._matches: dict[int, Match] = {}

    # The events of a life

    def begin(self, now_ms: int) -> None:
        """A life begins."""
        self._pending.clear()
        self._doubted.clear()
        self._moments = []
        self.now_ms = now_ms
        self._changed = True
        self.note(-1)

    def note(self, event: int) -> None:
        """Notes what may be after an event, if that is something else than before."""
        if self._changed:
            in_flight, doubted = tuple(self._pending.values()), tuple(self._doubted.values())
            self._moments.append(Moment(event, self.now_ms, self._shelves, in_flight, doubted))
            self._changed = False

    def concerns(self, request: Request) -> bool:
        """Whether a request has a share here."""
        return any(map(self._matters, request.operations))

    def send(self, request: Request, *, is_shared: bool) -> None:
        """A request is sent, which others may have a share in as well."""
        share = Share(request, tuple(filter(self._matters, request.operations)), is_shared=is_shared)
        self._pending[request.number] = share
        self._past += share.operations
        self._changed = True

    def answer(self, request: Request) -> None:
        """An answer arrives.

        Raises:
            Violation: it has no explanation.
        """
        share = self._pending[request.number]
        self._advance(share, share.is_done)
        del self._pending[request.number]
        self._strip(share.marks)

    def arrive(self, leaving: Collection[Request], *, may_refuse: bool) -> None:
        """The instant is over: what has reached the store in it is done or waits, unless its client has left.

        Args:
            leaving: those who left.
            may_refuse: whether what nobody has the answer of may have been refused for reasons outside the store.

        Raises:
            Violation: something cannot have reached it.
        """
        for share in list(self._pending.values()):
            has_arrived = share.request not in leaving and share.has_arrived_at(self.now_ms, may_refuse=may_refuse)
            if has_arrived and not all(map(share.is_done_or_waits, self._shelves)):
                self._advance(share, share.is_done_or_waits)

    def leave(self) -> None:
        """A client has left: what it popped may be on its way back from now on."""
        self._changed = True

    def see_off(self, request: Request) -> None:
        """A client has left: what it sent has happened by now or never will, and what it popped is back.

        If others have a share in it, it is doubted from here on how much of it was done.

        Raises:
            Violation: it cannot be.
        """
        share = self._pending[request.number]
        found: set[Shelf] = set()
        for shelf, follow in self._explore(self._shelves, self._pending.values()):
            resolved = shelf.is_resolved(share.operations)
            if resolved and (share.is_begun(shelf) or shelf in self._shelves):
                found.add(shelf)
            if not (resolved and share.is_done(shelf)):
                follow()
        if not found:
            self._refuse(f"after its client left: {share.operations[0]}", self._shelves)
        self._shelves = found
        del self._pending[request.number]
        if share.is_shared:
            self._doubted[request.number] = share
        self._strip({gone_mark(request.number)} if share.is_shared else share.marks)

    # Together with other searches

    def known(self) -> Iterator[tuple[Request, int]]:
        """Batches in flight that others share, and how many of their first commands have surely been done."""
        for share in list(self._pending.values()):
            if share.is_shared:
                length = min(share.lengths(shelf).start for shelf in self._shelves)
                if length:
                    yield share.request, length

    def require(self, request: Request, length: int) -> bool:
        """So many of a batch's first commands have been done by now; whether that is news.

        Raises:
            Violation: they cannot have been.
        """
        share = self._pending.get(request.number)
        if share is None or all(share.lengths(shelf)[-1] >= length for shelf in self._shelves):
            return False
        self._advance(share, lambda shelf: share.lengths(shelf)[-1] >= length)
        return True

    def lengths(self, request: Request) -> set[int]:
        """How many of a doubted batch's first commands may have been done."""
        share = self._doubted[request.number]
        return {length for shelf in self._shelves for length in share.lengths(shelf)}

    def narrow(self, request: Request, lengths: set[int]) -> bool:
        """Only so many of a doubted batch's first commands may have been done; whether that is news."""
        share = self._doubted[request.number]
        shelves = {shelf for shelf in self._shelves if not lengths.isdisjoint(share.lengths(shelf))}
        is_news = len(shelves) < len(self._shelves)
        if is_news:
            self._shelves, self._changed = shelves, True
        return is_news

    def trust(self, request: Request) -> None:
        """It is no longer asked how much of a batch was done."""
        share = self._doubted.pop(request.number)
        self._strip(share.marks)

    # The end of a life

    def matching_cuts(self, life: Life, content: Content, first: int) -> set[int]:
        """The events, from the `first` on, after which this group may have held what was found.

        Raises:
            Violation: there is none.
        """
        self._matches = {}
        last = self._moments[-1]
        for moment, following in zip(self._moments, [*self._moments[1:], None], strict=True):
            end = len(life.events) + 1 if following is None else following.event
            if end > max(first, moment.event):
                self.now_ms = life.ended_ms if moment is last else moment.now_ms
                parts = [*moment.doubted, *(share for share in moment.pending if share.is_shared)]
                settled = self._settled(moment, parts, strict=life.safe_ms is None)
                found = set(self._matching(settled, life, content))
                if found:
                    self._matches.update(dict.fromkeys(range(max(first, moment.event), end), Match(parts, found)))
        if not self._matches:
            held = [content[key] for key in self._keys if key in content]
            self._refuse(f"after the engine ended ({life.end.value}), the next start found {held}", self._shelves)
        return set(self._matches)

    def claims(self, cut: int) -> set[Claim]:
        """What this group says of batches that others share, if the store is as it was after this event."""
        parts, shelves = self._matches[cut]
        return {frozenset((share.request.number, share.lengths(shelf)) for share in parts) for shelf in shelves}

    def reopen(self, cuts: set[int]) -> None:
        """The store is as it was after one of these events."""
        self._shelves = {Shelf(shelf.entries) for cut in cuts for shelf in self._matches[cut].shelves}

    # How it is done

    def _advance(self, share: Share, reached: Callable[[Shelf], bool]) -> None:
        """Does what is in flight, in any order, until a share has got there."""
        found: set[Shelf] = set()
        for shelf, follow in self._explore(self._shelves, self._pending.values()):
            if reached(shelf):
                found.add(shelf)
            else:
                follow()
        if not found:
            self._refuse("\n    ".join(map(str, share.operations)), self._shelves)
        self._shelves = found
        self._changed = True

    def _matters(self, operation: Operation) -> bool:
        """Whether an operation is about these keys, and more than a read whose answer nobody got."""
        return operation.words[1] in self._keys and (operation.answer is not None or operation.name in CHANGING)

    def _strip(self, marks: set[int]) -> None:
        """Takes these marks off the shelves, some of which may be the same then."""
        self._shelves = {shelf._replace(done=shelf.done - marks) for shelf in self._shelves}
        self._changed = True

    def _settled(self, moment: Moment, parts: Sequence[Share], *, strict: bool) -> set[Shelf]:
        """All that may have been at a moment; if `strict`, with everything done of which somebody has the answer."""
        operations = [one for share in moment.pending for one in share.operations] if strict else []
        needed = {one.number for one in operations if one.is_acknowledged and one.answer != NULL}
        shared = {number for share in parts for number in share.numbers}
        found: set[Shelf] = set()
        for shelf, follow in self._explore(moment.shelves, moment.pending):
            if needed <= shelf.done:
                found.add(Shelf(shelf.entries, done=shelf.done & shared))
            follow()
        return found

    def _explore(self, shelves: set[Shelf], pending: Collection[Share]) -> Iterator[tuple[Shelf, Callable[[], None]]]:
        """Yields each shelf once, with a function that has what may follow it explored as well."""
        seen, todo = set(shelves), list(shelves)
        while todo:
            shelf = todo.pop()

            def follow(shelf: Shelf = shelf) -> None:
                for after in self._steps(shelf, pending):
                    if after not in seen:
                        seen.add(after)
                        todo.append(after)

            yield shelf, follow
            assert len(seen) < SHELVES_MAX, "the history is too ambiguous to be judged"

    def _steps(self, shelf: Shelf, pending: Collection[Share]) -> Iterator[Shelf]:
        for share in pending:
            if step := share.step(shelf):
                yield from self._rules.perform(shelf, step, atomic=share.request.atomic)
        for _, number in shelf.lines:
            yield from self._rules.give_up(shelf, self._operations[number], self.now_ms)
        if shelf.taken:
            yield from self._rules.put_back(shelf, self.now_ms)

    def _matching(self, shelves: set[Shelf], life: Life, content: Content) -> Iterator[Shelf]:
        """Those of the shelves that hold what was found, as they go on."""
        for shelf in shelves:
            entries = [(key, self._held(entry, content.get(key), life)) for key, entry in shelf.entries]
            if all(fits for _, (fits, _) in entries):
                yield shelf._replace(entries=tuple((key, entry) for key, (_, entry) in entries))

    def _held(self, entry: Entry, found: tuple[object, ...] | None, life: Life) -> tuple[bool, Entry]:
        """Whether a start may have found this where an entry was, and what is there from now on."""
        if found is None:
            return entry is None or (isinstance(entry, Plain) and self._may_have_expired(entry, life)), None
        if entry is None:
            return False, None
        if isinstance(entry, Queue):
            return found == ("queue", found[1], entry.values), entry
        kind, _, value, *rest = found
        deadline_ms = rest[0] if rest else None
        return kind == "value" and value == entry.value and self._expires_at(entry.deadline, deadline_ms), entry

    def _may_have_expired(self, entry: Plain, life: Life) -> bool:
        if entry.deadline is None or entry.gone:
            return entry.gone
        return self._rules.engine_ms(entry.deadline)[0] <= life.engine_ms(life.ended_ms)[1] + SLACK_MS

    def _expires_at(self, deadline: Deadline | None, found_ms: object) -> bool:
        if deadline is None or not isinstance(found_ms, int):
            return deadline is None and found_ms is None
        earliest, latest = self._rules.engine_ms(deadline)
        return earliest - SLACK_MS <= found_ms <= latest + SLACK_MS

    def _refuse(self, what: str, shelves: set[Shelf]) -> None:
        names = b" ".join(self._keys).decode()
        lines = [f"no order of the commands on {names} explains this:", f"    {what}", "the last commands there:"]
        lines += [f"    {operation}" for operation in self._past[-SHOWN_OPERATIONS:]]
        lines += ["what the store may have been at:", *(f"    {shelf}" for shelf in list(shelves)[:5])]
        raise Violation("\n".join(lines))
