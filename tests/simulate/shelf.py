"""What commands do, as the contract (SPEC section 2) has it: pure steps over a few keys that are judged together.

A `Shelf` is one moment of those keys, hashable, so that a search can tell the moments it has seen. A step takes a shelf
and an operation and yields the shelves that may follow: none if the operation's answer does not fit, more than one
where a key is about to expire and the client cannot know whether it had.

A blocking pop that finds nothing stands in its queue's line until somebody's push reaches it, its time is up, or its
client leaves. What was popped for a client that left is `taken` until it goes back to where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, product
from typing import NamedTuple

from tests.simulate.history import Answer, Life, Operation, Outcome

SLACK_MS = 1
"""Virtual time is noted in whole milliseconds; engine time is rounded as well."""

DONE: Answer = ("ok", None)
NULL: Answer = ("value", None)
KEY_NOT_FOUND: Answer = ("error", "key not found")
KEY_ALREADY_EXISTS: Answer = ("error", "key already exists")
WRONG_TYPE: Answer = ("error", "wrong type")
QUEUE_IS_EMPTY: Answer = ("error", "queue is empty")
UNAVAILABLE: Answer = ("error", "unavailable")
STORAGE_FULL: Answer = ("error", "storage full")


class Deadline(NamedTuple):
    """When a key expires: between two virtual times, reckoned by the clock of one life."""

    life: int
    from_ms: int
    to_ms: int


class Plain(NamedTuple):
    """A plain value; `gone` when somebody has seen that it has expired: it never comes back."""

    value: bytes
    deadline: Deadline | None = None
    gone: bool = False


class Queue(NamedTuple):
    """A queue's values, first to last."""

    values: tuple[bytes, ...]


Entry = Plain | Queue | None


class Taken(NamedTuple):
    """A value popped for a client that left."""

    number: int
    key: bytes
    value: bytes
    front: bool


class Shelf(NamedTuple):
    """One moment: what each key holds, who waits there, what is to be put back, and which operations are done."""

    entries: tuple[tuple[bytes, Entry], ...]
    lines: tuple[tuple[bytes, int], ...] = ()
    taken: tuple[Taken, ...] = ()
    done: frozenset[int] = frozenset()

    def get(self, key: bytes) -> Entry:
        """What a key holds; nothing when it has expired."""
        for name, entry in self.entries:
            if name == key:
                return None if isinstance(entry, Plain) and entry.gone else entry
        raise KeyError(key)

    def put(self, key: bytes, entry: Entry) -> Shelf:
        """The same with another entry."""
        entries = tuple((name, entry if name == key else old) for name, old in self.entries)
        return self._replace(entries=entries)

    def replace_all(self, key: bytes, entry: Entry) -> Shelf:
        """The same with another entry that is not the old one grown: values on their way back have nowhere to go."""
        return self.put(key, entry)._replace(taken=tuple(taken for taken in self.taken if taken.key != key))

    def finish(self, operation: Operation) -> Shelf:
        """The same with an operation done, and nobody of it in a line."""
        lines = tuple(waiting for waiting in self.lines if waiting[1] != operation.number)
        return self._replace(lines=lines, done=self.done | {operation.number})

    def is_waiting(self, operation: Operation) -> bool:
        """Whether an operation stands in a line."""
        return any(number == operation.number for _, number in self.lines)

    def is_resolved(self, operation: Operation) -> bool:
        """Whether nothing of an operation is still to come, should it have been done at all."""
        return not self.is_waiting(operation) and all(taken.number != operation.number for taken in self.taken)


class SetOptions(NamedTuple):
    """What follows the value of a SET."""

    ttl_ms: int | None
    condition: bytes | None


@lru_cache(maxsize=4096)
def set_options(words: tuple[bytes, ...]) -> SetOptions:
    """Reads the options of a SET."""
    ttl_ms, condition = None, None
    rest = iter(words)
    for word in rest:
        if word == b"EX":
            ttl_ms = int(next(rest)) * 1000
        elif word == b"PX":
            ttl_ms = int(next(rest))
        else:
            condition = word
    return SetOptions(ttl_ms, condition)


class Rules:
    """The steps.

    Args:
        operations: by number, to be kept up to date by the caller: those that may stand in lines.
        lives: by number.
    """

    def __init__(self, operations: dict[int, Operation], lives: list[Life]) -> None:
        self._operations = operations
        self._lives = lives

    def perform(self, shelf: Shelf, operation: Operation) -> Iterator[Shelf]:
        """An operation reaches the store."""
        if operation.answer in (UNAVAILABLE, STORAGE_FULL) and not self._should_wait(operation):
            if self._may_be_refused(operation):
                yield shelf.finish(operation)
            return
        for seen in self._views(shelf, operation):
            after = getattr(self, "_" + operation.name.decode().lower())(seen, operation)
            if after is not None:
                yield after

    def give_up(self, shelf: Shelf, operation: Operation, now_ms: int) -> Iterator[Shelf]:
        """One who waits stops waiting: time is up, the server shuts down, or the client left."""
        due = operation.timeout_ms is not None and now_ms >= operation.invoked_ms + operation.timeout_ms - SLACK_MS
        stopping_ms = self._lives[-1].stopping_ms
        if (
            (due and self._says(operation, NULL))
            or (operation.answer == UNAVAILABLE and stopping_ms is not None and now_ms >= stopping_ms)
            or (operation.outcome is Outcome.LEFT and now_ms >= operation.ended_ms)
        ):
            yield shelf.finish(operation)

    def put_back(self, shelf: Shelf, now_ms: int) -> Iterator[Shelf]:
        """Values popped for clients who have left by now go back, one or several at once, the last pop first."""
        due = [taken for taken in shelf.taken if now_ms >= self._operations[taken.number].ended_ms]
        for count in range(1, len(due) + 1):
            for returned in combinations(due, count):
                after = shelf._replace(taken=tuple(taken for taken in shelf.taken if taken not in returned))
                for taken in reversed(returned):
                    entry = after.get(taken.key)
                    assert isinstance(entry, Queue), "a value of a queue that is gone is not put back"
                    values = (taken.value, *entry.values) if taken.front else (*entry.values, taken.value)
                    after = after.put(taken.key, Queue(values))
                served: Shelf | None = after
                for key in dict.fromkeys(taken.key for taken in returned):
                    served = self._serve(served, key) if served is not None else None
                if served is not None:
                    yield served

    def _may_be_refused(self, operation: Operation) -> bool:
        """Whether a command may have been turned away for reasons outside the store, and have done nothing."""
        life = self._lives[-1]
        if operation.answer == STORAGE_FULL:
            # A pop is refused only when nothing is left of the reserve, of which no client can know.
            return operation.invoked_ms < life.full_until_ms  # reads as well: an expiry they see must be noted
        return life.stopping_ms is not None and operation.invoked_ms >= life.stopping_ms

    def _should_wait(self, operation: Operation) -> bool:
        """Whether a blocking pop that was turned away had come in time to wait until then."""
        life = self._lives[-1]
        in_time = life.stopping_ms is not None and operation.invoked_ms < life.stopping_ms <= operation.ended_ms
        return in_time and operation.name == b"BQPOP" and operation.answer == UNAVAILABLE

    # Time

    def engine_ms(self, deadline: Deadline) -> tuple[int, int]:
        """The earliest and the latest engine time that a deadline may be."""
        life = self._lives[deadline.life]
        return life.engine_ms(deadline.from_ms)[0], life.engine_ms(deadline.to_ms)[1]

    def _views(self, shelf: Shelf, operation: Operation) -> Iterator[Shelf]:
        """The shelf as the operation may find it: keys that may have expired, have or have not."""
        choices: list[list[tuple[bytes, Entry]]] = []
        for key, entry in shelf.entries:
            views: list[tuple[bytes, Entry]] = [(key, entry)]
            if isinstance(entry, Plain) and entry.deadline and not entry.gone and key in operation.words[1:]:
                views = []
                earliest, latest = self._left_ms(entry.deadline, operation)
                if latest > -SLACK_MS:
                    views.append((key, entry))
                if earliest <= SLACK_MS:
                    views.append((key, entry._replace(gone=True)))
            choices.append(views)
        if all(len(views) == 1 and views[0] == old for views, old in zip(choices, shelf.entries, strict=True)):
            yield shelf
            return
        for entries in product(*choices):
            yield shelf._replace(entries=entries)

    def _left_ms(self, deadline: Deadline, operation: Operation) -> tuple[int, int]:
        """The least and the most time a key may have left when an operation looks at it."""
        life = self._lives[-1]
        if deadline.life == life.number:
            return deadline.from_ms - operation.ended_ms, deadline.to_ms - operation.invoked_ms
        earliest, latest = self.engine_ms(deadline)
        return earliest - life.engine_ms(operation.ended_ms)[1], latest - life.engine_ms(operation.invoked_ms)[0]

    # Commands

    def _set(self, shelf: Shelf, operation: Operation) -> Shelf | None:
        key, value = operation.words[1:3]
        options = set_options(operation.words[3:])
        present = shelf.get(key) is not None
        if options.condition == b"NX" and present:
            return self._answer(shelf, operation, KEY_ALREADY_EXISTS)
        if options.condition == b"XX" and not present:
            return self._answer(shelf, operation, KEY_NOT_FOUND)
        deadline = None
        if options.ttl_ms is not None:
            first_ms, last_ms = operation.invoked_ms + options.ttl_ms, operation.ended_ms + options.ttl_ms
            deadline = Deadline(self._lives[-1].number, first_ms, last_ms)
        return self._answer(shelf.replace_all(key, Plain(value, deadline)), operation, DONE)

    def _get(self, shelf: Shelf, operation: Operation) -> Shelf | None:
        entry = shelf.get(operation.words[1])
        if entry is None:
            return self._answer(shelf, operation, KEY_NOT_FOUND)
        return self._answer(shelf, operation, WRONG_TYPE if isinstance(entry, Queue) else ("value", entry.value))

    def _delete(self, shelf: Shelf, operation: Operation) -> Shelf | None:
        count = 0
        for key in operation.words[1:]:
            if shelf.get(key) is not None:
                shelf = shelf.replace_all(key, None)
                count += 1
        return self._answer(shelf, operation, ("integer", count) if count else KEY_NOT_FOUND)

    def _exists(self, shelf: Shelf, operation: Operation) -> Shelf | None:
        count = sum(shelf.get(key) is not None for key in operation.words[1:])
        return self._answer(shelf, operation, ("integer", count))

    def _qpush(self, shelf: Shelf, operation: Operation) -> Shelf | None:
        key = operation.words[1]
        entry = shelf.get(key)
        if isinstance(entry, Plain):
            return self._answer(shelf, operation, WRONG_TYPE)
        values = (*(entry.values if entry else ()), *operation.words[2:])
        after = self._answer(shelf.put(key, Queue(values)), operation, ("ok", len(values)))
        return None if after is None else self._serve(after, key)

    def _qpop(self, shelf: Shelf, operation: Operation) -> Shelf | None:
        entry = shelf.get(operation.words[1])
        if entry is None:
            return self._answer(shelf, operation, NULL)
        if isinstance(entry, Plain):
            return self._answer(shelf, operation, WRONG_TYPE)
        if not entry.values:
            return self._answer(shelf, operation, QUEUE_IS_EMPTY)
        return self._hand_over(shelf, operation, entry.values, front=False)

    def _bqpop(self, shelf: Shelf, operation: Operation) -> Shelf | None:
        key = operation.words[1]
        entry = shelf.get(key)
        if isinstance(entry, Plain):
            return self._answer(shelf, operation, WRONG_TYPE)
        if entry and entry.values:
            return self._hand_over(shelf, operation, entry.values, front=True)
        if operation.timeout_ms == 0:
            return self._answer(shelf, operation, NULL)
        return shelf._replace(lines=(*shelf.lines, (key, operation.number)))

    def _qlen(self, shelf: Shelf, operation: Operation) -> Shelf | None:
        entry = shelf.get(operation.words[1])
        if isinstance(entry, Plain):
            return self._answer(shelf, operation, WRONG_TYPE)
        return self._answer(shelf, operation, ("integer", len(entry.values) if entry else 0))

    def _ttl(self, shelf: Shelf, operation: Operation) -> Shelf | None:
        entry = shelf.get(operation.words[1])
        if entry is None:
            return self._answer(shelf, operation, ("integer", -2))
        if isinstance(entry, Queue) or entry.deadline is None:
            return self._answer(shelf, operation, ("integer", -1))
        if operation.answer is not None:
            kind, left_s = operation.answer
            earliest, latest = self._left_ms(entry.deadline, operation)
            low_s, high_s = math.ceil((earliest - SLACK_MS) / 1000), math.ceil((latest + SLACK_MS) / 1000)
            if kind != "integer" or not max(1, low_s) <= left_s <= high_s:
                return None
        return shelf.finish(operation)

    # Answers

    def _says(self, operation: Operation, answer: Answer) -> bool:
        """Whether this may be the operation's answer: one that nobody received can be anything."""
        return operation.answer is None or operation.answer == answer

    def _answer(self, shelf: Shelf, operation: Operation, answer: Answer) -> Shelf | None:
        return shelf.finish(operation) if self._says(operation, answer) else None

    def _hand_over(self, shelf: Shelf, operation: Operation, values: tuple[bytes, ...], *, front: bool) -> Shelf | None:
        """Gives the first or the last value of a queue to somebody who popped."""
        key = operation.words[1]
        value, rest = (values[0], values[1:]) if front else (values[-1], values[:-1])
        after = self._answer(shelf.put(key, Queue(rest)), operation, ("value", value))
        if after is not None and operation.outcome is Outcome.LEFT:
            after = after._replace(taken=(*after.taken, Taken(operation.number, key, value, front)))
        return after

    def _serve(self, shelf: Shelf | None, key: bytes) -> Shelf | None:
        """Serves those who wait for a queue that has grown, the longest wait first."""
        while shelf is not None:
            entry = shelf.get(key)
            first = next((number for name, number in shelf.lines if name == key), None)
            if first is None or not isinstance(entry, Queue) or not entry.values:
                return shelf
            shelf = self._hand_over(shelf, self._operations[first], entry.values, front=True)
        return None
