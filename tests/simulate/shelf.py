"""What commands do, as the contract (SPEC section 2) has it: pure steps over a few keys that are judged together.

A `Shelf` is one moment of those keys, hashable, so that a search can tell the moments it has seen. A step takes a shelf
and an operation, or all those of a unit, and yields the shelves that may follow: none if the answers do not fit, more
than one where a key is about to expire and the client cannot know whether it had.

A blocking pop that finds nothing stands in its queue's line until somebody's push reaches it, its time is up, or its
client leaves. What was popped for a client that left is `taken` until it goes back to where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, combinations, product
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

CHANGING = (b"SET", b"DELETE", b"QPUSH", b"QPOP", b"BQPOP")
"""Commands that refuse the unit they are in when they are refused."""


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

    def finish(self, *operations: Operation) -> Shelf:
        """The same with operations done, and nobody of them in a line."""
        numbers = {operation.number for operation in operations}
        lines = tuple(waiting for waiting in self.lines if waiting[1] not in numbers)
        return self._replace(lines=lines, done=self.done | numbers)

    def is_waiting(self, operation: Operation) -> bool:
        """Whether an operation stands in a line."""
        return any(number == operation.number for _, number in self.lines)

    def is_resolved(self, operations: Sequence[Operation]) -> bool:
        """Whether nothing of some operations is still to come, should they have been done at all."""
        numbers = [operation.number for operation in operations]
        return all(number not in numbers for _, number in self.lines) and all(
            taken.number not in numbers for taken in self.taken
        )


def gone_mark(number: int) -> int:
    """What stands in `Shelf.done` for a request whose client left, when what it popped goes back: no more is done."""
    return ~number


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


class Refusal(NamedTuple):
    """Of an answer: the unit was refused because of the command at this place, for this reason."""

    place: int
    error: str


class Rules:
    """The steps.

    Args:
        operations: by number, to be kept up to date by the caller: those that may stand in lines.
        lives: by number.
    """

    def __init__(self, operations: dict[int, Operation], lives: list[Life]) -> None:
        self._operations = operations
        self._lives = lives

    def perform(self, shelf: Shelf, step: Sequence[Operation], *, atomic: bool = False) -> Iterator[Shelf]:
        """A command reaches the store, or all those of a unit that are about these keys."""
        first = step[0]
        if first.answer in (UNAVAILABLE, STORAGE_FULL) and not self._should_wait(first):
            if self._may_be_refused(first):
                yield shelf.finish(*step)
            return
        refusal = first.answer[1] if first.answer is not None and first.answer[0] == "refused" else None
        decided = [one for one in step if refusal is None or one.place <= refusal.place]
        for seen in self._views(shelf, decided):
            if refusal is not None:
                if self._is_refused(seen, decided, refusal):
                    yield seen.finish(*step)
            elif (after := self._carry_out(seen, step, atomic=atomic)) is not None:
                yield after

    def _carry_out(self, shelf: Shelf, step: Sequence[Operation], *, atomic: bool) -> Shelf | None:
        """Does all of a step, and serves those who wait when it is done; None if that does not fit the answers."""
        for operation in step:
            shelf, answer = self._do(shelf, operation)
            if answer is None:
                return shelf  # it waits
            if not _says(operation, answer) or (atomic and _refuses(operation, answer)):
                return None
            shelf = shelf.finish(operation)
        served: Shelf | None = shelf
        for key in dict.fromkeys(operation.words[1] for operation in step if operation.name == b"QPUSH"):
            served = self._serve(served, key)
        return served

    def _is_refused(self, shelf: Shelf, decided: Sequence[Operation], refusal: Refusal) -> bool:
        """Whether of these commands of a unit, up to the one to blame, that one is refused and no other."""
        for operation in decided:
            shelf, answer = self._do(shelf, operation)
            assert answer is not None, "nobody waits in a batch"
            if _refuses(operation, answer) != (operation.place == refusal.place):
                return False
            if operation.place == refusal.place and answer[1] != refusal.error:
                return False
        return True

    def give_up(self, shelf: Shelf, operation: Operation, now_ms: int) -> Iterator[Shelf]:
        """One who waits stops waiting: time is up, the server shuts down, or the client left."""
        due = operation.timeout_ms is not None and now_ms >= operation.invoked_ms + operation.timeout_ms - SLACK_MS
        stopping_ms = self._lives[-1].stopping_ms
        if (
            (due and _says(operation, NULL))
            or (operation.answer == UNAVAILABLE and stopping_ms is not None and now_ms >= stopping_ms)
            or (operation.outcome is Outcome.LEFT and now_ms >= operation.ended_ms)
        ):
            yield shelf.finish(operation)

    def put_back(self, shelf: Shelf, now_ms: int) -> Iterator[Shelf]:
        """Values popped for clients who have left by now go back: of one client or several at once, the last pop first.

        On a full disk the rest of them may come later.
        """
        due = [taken for taken in shelf.taken if now_ms >= self._operations[taken.number].ended_ms]
        requests = list(dict.fromkeys(self._request(taken) for taken in due))
        tried = set()
        for chosen in chain.from_iterable(combinations(requests, count) for count in range(1, len(requests) + 1)):
            of_chosen = tuple(taken for taken in due if self._request(taken) in chosen)
            for start in range(len(of_chosen) if self._lives[-1].full_until_ms else 1):
                returned = of_chosen[start:]
                if returned not in tried:
                    tried.add(returned)
                    after = self._put_back(shelf, returned)
                    if after is not None:
                        yield after._replace(done=after.done.union(map(gone_mark, chosen)))

    def _request(self, taken: Taken) -> int:
        """The number of the request that popped a value."""
        return taken.number - self._operations[taken.number].place

    def _put_back(self, shelf: Shelf, returned: Sequence[Taken]) -> Shelf | None:
        after: Shelf | None = shelf._replace(taken=tuple(taken for taken in shelf.taken if taken not in returned))
        for taken in reversed(returned):
            assert after is not None
            entry = after.get(taken.key)
            assert isinstance(entry, Queue), "a value of a queue that is gone is not put back"
            values = (taken.value, *entry.values) if taken.front else (*entry.values, taken.value)
            after = after.put(taken.key, Queue(values))
        for key in dict.fromkeys(taken.key for taken in returned):
            after = self._serve(after, key)
        return after

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

    def _views(self, shelf: Shelf, step: Sequence[Operation]) -> Iterator[Shelf]:
        """The shelf as a step may find it: keys that may have expired, have or have not."""
        choices: list[list[tuple[bytes, Entry]]] = []
        for key, entry in shelf.entries:
            views: list[tuple[bytes, Entry]] = [(key, entry)]
            if isinstance(entry, Plain) and entry.deadline and not entry.gone and _names(step, key):
                views = []
                earliest, latest = self._left_ms(entry.deadline, step[0])
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

    def _do(self, shelf: Shelf, operation: Operation) -> tuple[Shelf, Answer | None]:
        """What a command leads to, and what it answers; None when it waits."""
        found: tuple[Shelf, Answer | None] = getattr(self, "_" + operation.name.decode().lower())(shelf, operation)
        return found

    def _set(self, shelf: Shelf, operation: Operation) -> tuple[Shelf, Answer]:
        key, value = operation.words[1:3]
        options = set_options(operation.words[3:])
        present = shelf.get(key) is not None
        if options.condition == b"NX" and present:
            return shelf, KEY_ALREADY_EXISTS
        if options.condition == b"XX" and not present:
            return shelf, KEY_NOT_FOUND
        deadline = None
        if options.ttl_ms is not None:
            first_ms, last_ms = operation.invoked_ms + options.ttl_ms, operation.ended_ms + options.ttl_ms
            deadline = Deadline(self._lives[-1].number, first_ms, last_ms)
        return shelf.replace_all(key, Plain(value, deadline)), DONE

    def _get(self, shelf: Shelf, operation: Operation) -> tuple[Shelf, Answer]:
        entry = shelf.get(operation.words[1])
        if entry is None:
            return shelf, KEY_NOT_FOUND
        return shelf, WRONG_TYPE if isinstance(entry, Queue) else ("value", entry.value)

    def _delete(self, shelf: Shelf, operation: Operation) -> tuple[Shelf, Answer]:
        count = 0
        for key in operation.words[1:]:
            if shelf.get(key) is not None:
                shelf = shelf.replace_all(key, None)
                count += 1
        return shelf, ("integer", count) if count else KEY_NOT_FOUND

    def _exists(self, shelf: Shelf, operation: Operation) -> tuple[Shelf, Answer]:
        return shelf, ("integer", sum(shelf.get(key) is not None for key in operation.words[1:]))

    def _qpush(self, shelf: Shelf, operation: Operation) -> tuple[Shelf, Answer]:
        key = operation.words[1]
        entry = shelf.get(key)
        if isinstance(entry, Plain):
            return shelf, WRONG_TYPE
        values = (*(entry.values if entry else ()), *operation.words[2:])
        return shelf.put(key, Queue(values)), ("ok", len(values))

    def _qpop(self, shelf: Shelf, operation: Operation) -> tuple[Shelf, Answer]:
        entry = shelf.get(operation.words[1])
        if entry is None:
            return shelf, NULL
        if isinstance(entry, Plain):
            return shelf, WRONG_TYPE
        if not entry.values:
            return shelf, QUEUE_IS_EMPTY
        return self._take(shelf, operation, entry.values, front=False)

    def _bqpop(self, shelf: Shelf, operation: Operation) -> tuple[Shelf, Answer | None]:
        key = operation.words[1]
        entry = shelf.get(key)
        if isinstance(entry, Plain):
            return shelf, WRONG_TYPE
        if entry and entry.values:
            return self._take(shelf, operation, entry.values, front=True)
        if operation.timeout_ms == 0:
            return shelf, NULL
        return shelf._replace(lines=(*shelf.lines, (key, operation.number))), None

    def _qlen(self, shelf: Shelf, operation: Operation) -> tuple[Shelf, Answer]:
        entry = shelf.get(operation.words[1])
        if isinstance(entry, Plain):
            return shelf, WRONG_TYPE
        return shelf, ("integer", len(entry.values) if entry else 0)

    def _ttl(self, shelf: Shelf, operation: Operation) -> tuple[Shelf, Answer]:
        entry = shelf.get(operation.words[1])
        if entry is None:
            return shelf, ("integer", -2)
        if isinstance(entry, Queue) or entry.deadline is None:
            return shelf, ("integer", -1)
        earliest, latest = self._left_ms(entry.deadline, operation)
        low_s, high_s = math.ceil((earliest - SLACK_MS) / 1000), math.ceil((latest + SLACK_MS) / 1000)
        return shelf, ("integer", range(max(1, low_s), high_s + 1))

    # Queues

    def _take(
        self, shelf: Shelf, operation: Operation, values: tuple[bytes, ...], *, front: bool
    ) -> tuple[Shelf, Answer]:
        """Takes the first or the last value of a queue for somebody who pops."""
        key = operation.words[1]
        value, rest = (values[0], values[1:]) if front else (values[-1], values[:-1])
        after = shelf.put(key, Queue(rest))
        if operation.outcome is Outcome.LEFT:
            after = after._replace(taken=(*after.taken, Taken(operation.number, key, value, front)))
        return after, ("value", value)

    def _serve(self, shelf: Shelf | None, key: bytes) -> Shelf | None:
        """Serves those who wait for a queue that has grown, the longest wait first."""
        while shelf is not None:
            entry = shelf.get(key)
            first = next((number for name, number in shelf.lines if name == key), None)
            if first is None or not isinstance(entry, Queue) or not entry.values:
                return shelf
            waiting = self._operations[first]
            shelf, answer = self._take(shelf, waiting, entry.values, front=True)
            shelf = shelf.finish(waiting) if _says(waiting, answer) else None
        return None


def _says(operation: Operation, answer: Answer) -> bool:
    """Whether this may be the operation's answer: one that nobody received can be anything."""
    if operation.answer is None:
        return True
    kind, content = operation.answer
    return kind == answer[0] and (content in answer[1] if isinstance(answer[1], range) else content == answer[1])


def _refuses(operation: Operation, answer: Answer) -> bool:
    """Whether this answer to a command refuses the unit it is in."""
    return answer[0] == "error" and operation.name in CHANGING


def _names(step: Sequence[Operation], key: bytes) -> bool:
    return any(key in operation.words[1:] for operation in step)
