"""A naive model of Holdfast, to compare the engine with: plain dicts and lists, its own clock, no code of the engine.

It knows nothing of logs, batches or tasks: every command is done at once and in full. What the engine may be late with
(answers that wait for the disk) is told apart by whoever compares; what a crash may leave is one of `History`'s states.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from engine.replies import Failure, Integer, Ok, Refused, Reply, Value

Answer = tuple[str, object]
"""("ok", length or None), ("value", bytes or None), ("integer", n) or ("error", text); of a batch ("batch", answers),
of a unit that was refused ("refused", (place of the one to blame, text))."""

Content = dict[bytes, tuple[object, ...]]
"""What a store holds: key -> ("value", bytes, deadline in ms or None) or ("queue", value, value, ...)."""

DONE: Answer = ("ok", None)
NULL: Answer = ("value", None)

CHANGING = (b"SET", b"DELETE", b"QPUSH", b"QPOP", b"BQPOP")
"""Commands that refuse the unit they are in when they are refused."""


@dataclass
class Plain:
    value: bytes
    deadline_ms: int | None


@dataclass
class Line:
    """A queue; one that is removed and made again is another."""

    values: list[bytes] = field(default_factory=list)


@dataclass
class Waiting:
    client: Hashable
    key: bytes
    deadline_ms: int | None


@dataclass
class Popped:
    """A value that was handed out: to be put back when its client leaves before it has the answer."""

    number: int
    key: bytes
    line: Line
    value: bytes
    front: bool


class Model:
    """The store as it should be.

    Args:
        now_ms: engine time at the start.
        waiters_max: clients that may wait at once.
    """

    def __init__(self, now_ms: int, waiters_max: int) -> None:
        self.now_ms = now_ms
        self.answers: dict[Hashable, Answer] = {}
        self._waiters_max = waiters_max
        self._entries: dict[bytes, Plain | Line] = {}
        self._waiting: list[Waiting] = []
        self._popped: dict[Hashable, list[Popped]] = {}
        self._pops = 0

    def do(self, client: Hashable, words: list[bytes]) -> None:
        """Does a command; the answers it leads to are in `answers` afterwards, also those of others it serves."""
        self._do(client, words)
        self._serve()

    def do_in_batch(self, client: Hashable, words: list[bytes]) -> Answer:
        """Does the next command of a pipeline: nobody waits in it, and its answers are given together."""
        answer = self._do_at_once(client, words)
        self._serve()
        return answer

    def do_unit(self, client: Hashable, commands: Sequence[list[bytes]]) -> None:
        """Does several commands, or none of them; whoever waits is served afterwards."""
        entries, pops = dict(self._entries), self._pops
        values = {key: entry.values.copy() for key, entry in entries.items() if isinstance(entry, Line)}
        answers = []
        for place, words in enumerate(commands):
            answers.append(self._do_at_once(client, words))
            if answers[-1][0] == "error" and words[0] in CHANGING:
                self._entries, self._pops = entries, pops
                for key, old in values.items():
                    entries[key].values[:] = old  # type: ignore[union-attr]
                self._popped.pop(client, None)
                self.answers[client] = "refused", (place, answers[-1][1])
                return
        self.answers[client] = "batch", answers
        self._serve()

    def is_waiting(self, client: Hashable) -> bool:
        return any(waiting.client == client for waiting in self._waiting)

    def leave(self, *clients: Hashable) -> None:
        """Clients go away together, none of them with an answer in its hands."""
        self._waiting = [waiting for waiting in self._waiting if waiting.client not in clients]
        gone = [popped for client in clients for popped in self._popped.pop(client, ())]
        for popped in sorted(gone, key=lambda popped: popped.number, reverse=True):
            if self._entries.get(popped.key) is popped.line:
                popped.line.values.insert(0 if popped.front else len(popped.line.values), popped.value)
        for client in clients:
            self.answers.pop(client, None)
        self._serve()

    def receive(self, client: Hashable) -> Answer:
        """A client has got its answer: from here on a value it popped is its own."""
        self._popped.pop(client, None)
        return self.answers.pop(client)

    def pass_time(self, ms: int) -> None:
        """Time passes, and some give up waiting."""
        self.now_ms += ms
        for waiting in list(self._waiting):
            if waiting.deadline_ms is not None and waiting.deadline_ms <= self.now_ms:
                self._waiting.remove(waiting)
                self.answers[waiting.client] = NULL

    def shut_down(self) -> None:
        """Whoever waits is turned away."""
        for waiting in self._waiting:
            self.answers[waiting.client] = ("error", "unavailable")
        self._waiting = []

    def restart(self, content: Content) -> None:
        """Everybody is gone, and the store holds this."""
        self.answers.clear()
        self._waiting = []
        self._popped.clear()
        self._entries = {
            key: Line(list(rest)) if kind == "queue" else Plain(*rest)  # type: ignore[arg-type]
            for key, (kind, *rest) in content.items()
        }

    def content(self) -> Content:
        """What the store holds now."""
        found: Content = {}
        for key in list(self._entries):
            entry = self._look(key)
            if isinstance(entry, Line):
                found[key] = ("queue", *entry.values)
            elif entry is not None:
                found[key] = ("value", entry.value, entry.deadline_ms)
        return found

    def _do(self, client: Hashable, words: list[bytes]) -> None:
        name, *rest = words
        if name == b"BQPOP":
            self._bqpop(client, *rest)
        elif name == b"QPOP":
            self._qpop(client, *rest)
        else:
            self.answers[client] = getattr(self, "_" + name.decode().lower())(*rest)

    def _do_at_once(self, client: Hashable, words: list[bytes]) -> Answer:
        self._do(client, [*words[:2], b"0"] if words[0] == b"BQPOP" else words)
        return self.answers.pop(client)

    def _look(self, key: bytes) -> Plain | Line | None:
        entry = self._entries.get(key)
        if isinstance(entry, Plain) and entry.deadline_ms is not None and entry.deadline_ms <= self.now_ms:
            return None
        return entry

    def _set(self, key: bytes, value: bytes, *options: bytes) -> Answer:
        words = list(options)
        deadline_ms = None
        condition = None
        while words:
            word = words.pop(0)
            if word == b"EX":
                deadline_ms = self.now_ms + int(words.pop(0)) * 1000
            elif word == b"PX":
                deadline_ms = self.now_ms + int(words.pop(0))
            else:
                condition = word
        if condition == b"NX" and self._look(key) is not None:
            return "error", "key already exists"
        if condition == b"XX" and self._look(key) is None:
            return "error", "key not found"
        self._entries[key] = Plain(value, deadline_ms)
        return DONE

    def _get(self, key: bytes) -> Answer:
        entry = self._look(key)
        if entry is None:
            return "error", "key not found"
        return ("error", "wrong type") if isinstance(entry, Line) else ("value", entry.value)

    def _strlen(self, key: bytes) -> Answer:
        entry = self._look(key)
        if isinstance(entry, Line):
            return "error", "wrong type"
        return "integer", len(entry.value) if entry is not None else 0

    def _delete(self, *keys: bytes) -> Answer:
        count = 0
        for key in keys:
            if self._look(key) is not None:
                del self._entries[key]
                count += 1
        return ("integer", count) if count else ("error", "key not found")

    def _exists(self, *keys: bytes) -> Answer:
        return "integer", len([key for key in keys if self._look(key) is not None])

    def _qpush(self, key: bytes, *values: bytes) -> Answer:
        entry = self._look(key)
        if isinstance(entry, Plain):
            return "error", "wrong type"
        if entry is None:
            entry = self._entries[key] = Line()
        entry.values += values
        return "ok", len(entry.values)

    def _qlen(self, key: bytes) -> Answer:
        entry = self._look(key)
        if isinstance(entry, Plain):
            return "error", "wrong type"
        return "integer", len(entry.values) if entry is not None else 0

    def _ttl(self, key: bytes) -> Answer:
        entry = self._look(key)
        if entry is None:
            return "integer", -2
        if isinstance(entry, Line) or entry.deadline_ms is None:
            return "integer", -1
        return "integer", -((self.now_ms - entry.deadline_ms) // 1000)

    def _persist(self, key: bytes) -> Answer:
        entry = self._look(key)
        if not isinstance(entry, Plain) or entry.deadline_ms is None:
            return "integer", 0
        self._entries[key] = Plain(entry.value, None)
        return "integer", 1

    def _ping(self) -> Answer:
        return "value", b"PONG"

    def _qpop(self, client: Hashable, key: bytes) -> None:
        entry = self._look(key)
        if entry is None:
            self.answers[client] = NULL
        elif isinstance(entry, Plain):
            self.answers[client] = ("error", "wrong type")
        elif not entry.values:
            self.answers[client] = ("error", "queue is empty")
        else:
            self._take(client, key, entry, front=False)

    def _bqpop(self, client: Hashable, key: bytes, timeout: bytes | None = None) -> None:
        entry = self._look(key)
        if isinstance(entry, Plain):
            self.answers[client] = ("error", "wrong type")
        elif entry is not None and entry.values:
            self._take(client, key, entry, front=True)
        elif timeout == b"0":
            self.answers[client] = NULL
        elif len(self._waiting) >= self._waiters_max:
            self.answers[client] = ("error", "unavailable")
        else:
            deadline_ms = None if timeout is None else self.now_ms + round(float(timeout) * 1000)
            self._waiting.append(Waiting(client, key, deadline_ms))

    def _take(self, client: Hashable, key: bytes, line: Line, *, front: bool) -> None:
        value = line.values.pop(0 if front else -1)
        self._pops += 1
        self._popped.setdefault(client, []).append(Popped(self._pops, key, line, value, front))
        self.answers[client] = ("value", value)

    def _serve(self) -> None:
        """Serves whoever waits for a queue that has values, the longest wait first."""
        for waiting in list(self._waiting):
            entry = self._entries.get(waiting.key)
            if isinstance(entry, Line) and entry.values:
                self._waiting.remove(waiting)
                self._take(waiting.client, waiting.key, entry, front=True)


@dataclass
class Step:
    """One state the store went through, and since when."""

    content: Content
    time_ms: int


class History:
    """The states a crash may leave: from the last one known to be safe to the newest."""

    def __init__(self, content: Content, time_ms: int) -> None:
        self._steps = [Step(content, time_ms)]

    @property
    def last(self) -> int:
        """Number of the newest state."""
        return len(self._steps) - 1

    def add(self, content: Content, time_ms: int) -> int:
        """Notes what the store holds after one more step; returns the step's number."""
        self._steps.append(Step(content, time_ms))
        return self.last

    def since(self, safe: int, now_ms: int) -> list[Content]:
        """What the store may hold now, if no step up to number `safe` can be lost."""
        return [_live(step.content, now_ms) for step in self._steps[safe:]]

    def last_before(self, time_ms: int) -> int:
        """Number of the newest state that is not younger than this."""
        return max((number for number, step in enumerate(self._steps) if step.time_ms <= time_ms), default=0)


def _live(content: Content, now_ms: int) -> Content:
    return {
        key: entry
        for key, entry in content.items()
        if entry[0] == "queue" or entry[2] is None or entry[2] > now_ms  # type: ignore[operator]
    }


def answer_of(reply: Reply | list[Reply] | Refused) -> Answer:
    """A reply as a history notes it."""
    match reply:
        case list():
            return "batch", [answer_of(one) for one in reply]
        case Refused(Failure(error), place):
            return "refused", (place, error.value)
        case Ok(length):
            return "ok", length
        case Value(value):
            return "value", value
        case Integer(number):
            return "integer", number
        case Failure(error, _):
            return "error", error.value
