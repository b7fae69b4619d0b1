"""Whether a history can be explained: each command done at one instant between its sending and its end, in one order.

The search is that of Wing and Gong, made quick as Lowe does ("Testing for linearizability", 2017): the events are gone
through once, with the set of all shelves the store may be at; an operation need only be done by the time its answer
arrives, so the search branches over those in flight and nothing else. Keys are judged one by one, as linearizability
allows (Herlihy and Wing), but for those that are named in one command, which share a shelf.

Beyond plain linearizability:
- First come, first served: a blocking pop has reached the store when the instant in which it was sent is over. (In a
  simulation time passes only when nothing else can happen.)
- A client that left: when the instant is over, its command has happened or never will; what it popped is back.
- A crash is a bar: what was in flight has happened by then, or never will. What the next start finds is what the store
  was at after some event, the same one for every key: one after which nothing was sent that somebody has the answer
  of. With a lazy fsync policy a power cut may take back more: then it is any event not before `Life.safe_ms`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from tests.simulate.history import Dump, End, Event, Kind, Life, Operation, Outcome, Violation
from tests.simulate.shelf import NULL, SLACK_MS, Deadline, Entry, Plain, Queue, Rules, Shelf

SHOWN_OPERATIONS = 25
SHELVES_MAX = 200_000
"""A search beyond this is given up; no seed comes near."""


class Moment(NamedTuple):
    """What may have been after an event: its place in the life, the time, the shelves, who was in flight."""

    event: int
    now_ms: int
    shelves: set[Shelf]
    pending: tuple[Operation, ...]


Content = dict[bytes, tuple[object, ...]]
"""What a start found, by key."""


class Judge:
    """Judges one history, life by life.

    Args:
        groups: the keys of the history; those of one group are judged together.
    """

    def __init__(self, groups: Sequence[tuple[bytes, ...]]) -> None:
        self._lives: list[Life] = []
        self._operations: dict[int, Operation] = {}
        rules = Rules(self._operations, self._lives)
        self._searches = [Search(keys, rules, self._operations) for keys in groups]

    def begin(self, life: Life) -> None:
        """A life has started."""
        self._lives.append(life)

    def finish(self, found: Dump) -> None:
        """The life is over, and this is what the next start has found.

        Raises:
            Violation: there is no order that explains it.
        """
        life = self._lives[-1]
        self._operations.clear()
        self._operations.update({operation.number: operation for operation in life.operations})
        for search in self._searches:
            search.live(life)
        content = {entry[1]: entry for entry in found}
        first = _first_cut(life)
        cuts = set(range(first, len(life.events)))
        for search in self._searches:
            cuts &= search.matching_cuts(life, content, first)
        if not cuts:
            lines = [str(operation) for operation in life.operations[-SHOWN_OPERATIONS:]]
            raise Violation("\n".join([f"no moment explains all of what was found: {list(found)}", *lines]))
        for search in self._searches:
            search.reopen(cuts)


def _first_cut(life: Life) -> int:
    """The first event after which the store may have been as it was found: what was acknowledged was sent by then."""
    if life.end is End.STOP:
        return len(life.events) - 1
    if life.safe_ms is not None:
        return max((index for index, event in enumerate(life.events) if event[0] < life.safe_ms), default=-1)
    sent = (index for index, (_, kind, one) in enumerate(life.events) if kind is Kind.SENT and one.is_acknowledged)
    return max(sent, default=-1)


class Search:
    """The shelves that one group of keys may be at."""

    def __init__(self, keys: tuple[bytes, ...], rules: Rules, operations: dict[int, Operation]) -> None:
        self._keys = keys
        self._rules = rules
        self._operations = operations
        self._shelves = {Shelf(tuple((key, None) for key in keys))}
        self._pending: dict[int, Operation] = {}
        self._arriving: list[Operation] = []
        self._leaving: list[Operation] = []
        self._now_ms = 0
        self._moments: list[Moment] = []
        self._past: list[Operation] = []
        self._matches: dict[int, set[Shelf]] = {}

    def live(self, life: Life) -> None:
        """Goes through the events of a life.

        Raises:
            Violation: an answer has no explanation.
        """
        self._pending.clear()
        self._arriving, self._leaving, self._moments = [], [], []
        self._now_ms = life.started_ms
        self._note(-1)
        for index, event in enumerate(life.events):
            operation = event[2]
            if operation.words[1] in self._keys:
                if event[0] > self._now_ms:
                    self._end_instant()
                    self._now_ms = event[0]
                self._take(event)
                self._note(index)
        if life.ended_ms > self._now_ms or life.end is End.STOP:
            self._end_instant()
        self._note(len(life.events) - 1)

    def matching_cuts(self, life: Life, content: Content, first: int) -> set[int]:
        """The events, from the `first` on, after which this group may have held what was found.

        Raises:
            Violation: there is none.
        """
        self._matches = {}
        last = self._moments[-1]
        for moment, following in zip(self._moments, [*self._moments[1:], None], strict=True):
            end = len(life.events) if following is None else following.event
            if end > first:
                self._now_ms = life.ended_ms if moment is last else moment.now_ms
                found = set(self._matching(self._settled(moment, strict=life.safe_ms is None), life, content))
                if found:
                    self._matches.update(dict.fromkeys(range(max(first, moment.event), end), found))
        if not self._matches:
            held = [content[key] for key in self._keys if key in content]
            self._refuse(f"after the engine ended ({life.end.value}), the next start found {held}", self._shelves)
        return set(self._matches)

    def reopen(self, cuts: set[int]) -> None:
        """The store is as it was after one of these events."""
        self._shelves = set().union(*(self._matches[cut] for cut in cuts))

    def _note(self, event: int) -> None:
        self._moments.append(Moment(event, self._now_ms, self._shelves, tuple(self._pending.values())))

    def _take(self, event: Event) -> None:
        _, kind, operation = event
        if kind is Kind.SENT:
            self._pending[operation.number] = operation
            self._past.append(operation)
            if operation.timeout_ms != 0 and operation.name == b"BQPOP":
                self._arriving.append(operation)
        elif operation.outcome is Outcome.LEFT:
            self._leaving.append(operation)
        elif operation.outcome is Outcome.ANSWERED:
            self._advance(operation, lambda shelf: operation.number in shelf.done)
            self._forget(operation)

    def _end_instant(self) -> None:
        """Time is about to pass, so everything that could happen has happened."""
        arriving, self._arriving = self._arriving, []
        for operation in arriving:
            if operation.number in self._pending and operation not in self._leaving:
                self._advance(operation, partial(_has_arrived, operation))
        leaving, self._leaving = self._leaving, []
        for operation in leaving:
            self._see_off(operation)

    def _advance(self, operation: Operation, reached: Callable[[Shelf], bool]) -> None:
        """Does what is in flight, in any order, until an operation has got there."""
        found: set[Shelf] = set()
        for shelf, follow in self._explore(self._shelves, self._pending.values()):
            if reached(shelf):
                found.add(shelf)
            else:
                follow()
        if not found:
            self._refuse(str(operation), self._shelves)
        self._shelves = found

    def _see_off(self, operation: Operation) -> None:
        """A client has left: its command has happened by now or never will, and what it popped is back."""
        found: set[Shelf] = set()
        for shelf, follow in self._explore(self._shelves, self._pending.values()):
            done = operation.number in shelf.done
            resolved = shelf.is_resolved(operation)
            if resolved and (done or shelf in self._shelves):
                found.add(shelf)
            if not (resolved and done):
                follow()
        if not found:
            self._refuse(f"after its client left: {operation}", self._shelves)
        self._shelves = found
        self._forget(operation)

    def _forget(self, operation: Operation) -> None:
        del self._pending[operation.number]
        self._shelves = {shelf._replace(done=shelf.done - {operation.number}) for shelf in self._shelves}

    def _settled(self, moment: Moment, *, strict: bool) -> set[Shelf]:
        """All that may have been at a moment; if `strict`, with everything done of which somebody has the answer."""
        needed = {one.number for one in moment.pending if strict and one.is_acknowledged and one.answer != NULL}
        found: set[Shelf] = set()
        for shelf, follow in self._explore(moment.shelves, moment.pending):
            if needed <= shelf.done:
                found.add(Shelf(shelf.entries))
            follow()
        return found

    def _explore(
        self, shelves: set[Shelf], pending: Collection[Operation]
    ) -> Iterator[tuple[Shelf, Callable[[], None]]]:
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

    def _steps(self, shelf: Shelf, pending: Collection[Operation]) -> Iterator[Shelf]:
        for operation in pending:
            if operation.number not in shelf.done and not shelf.is_waiting(operation):
                yield from self._rules.perform(shelf, operation)
        for _, number in shelf.lines:
            yield from self._rules.give_up(shelf, self._operations[number], self._now_ms)
        if shelf.taken:
            yield from self._rules.put_back(shelf, self._now_ms)

    def _matching(self, shelves: set[Shelf], life: Life, content: Content) -> Iterator[Shelf]:
        """Those of the shelves that hold what was found, as they go on."""
        for shelf in shelves:
            entries = [(key, self._held(entry, content.get(key), life)) for key, entry in shelf.entries]
            if all(fits for _, (fits, _) in entries):
                yield Shelf(tuple((key, entry) for key, (_, entry) in entries))

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


def _has_arrived(operation: Operation, shelf: Shelf) -> bool:
    return operation.number in shelf.done or shelf.is_waiting(operation)
