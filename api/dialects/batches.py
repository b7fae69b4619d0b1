"""Batches: a body that is a list of commands becomes them, their replies become the list of answers. Pure.

    POST /pipeline   each command by itself: one that is refused has its refusal in its place, the rest is done
    POST /multi      a unit, all or nothing: one that is refused refuses the whole

An element is what the body of `POST /` is, in any dialect, and its answer is the body which that would get; an empty
one becomes `{}`. The whole body is read before anything runs: if it is not JSON, nothing does.

The rules that hold here:

- What `is_quick` takes may be parsed in the event loop, and what `is_quick_to_answer` takes may be answered there. For
  all else `parse` belongs in a worker thread, none of its steps holds the GIL for long; and `encode` gives the answer
  in slices.
- The C scanner and `line.plain_lines` take many elements at a time, `bodies.plain` one; what they leave goes the long
  way, which is the authority.
- Memory is bounded by the length of the body, `batch_commands_max`, and the number of items and words.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from api.dialects import answers, bodies, line
from api.dialects.answers import Answer, value_member
from api.dialects.json_body import MARKS, BadRequest, Json, as_bytes, check_strings
from api.dialects.json_list import ListReader, count_items
from api.dialects.request import LINE, Request
from engine.calls import Command
from engine.commands.grammar import Effect
from engine.commands.table import HEAVY, row_of, weigh
from engine.limits import KIB, Limits
from engine.replies import Error, Failure, Ok, Refused, Reply, Value

QUICK_BYTES_MAX = 64 * KIB
"""Longest body for the event loop."""

QUICK_MARKS_MAX = 2560
QUICK_COMMAS_MAX = 512
"""Most bytes of `json_body.MARKS` in it, and most commas, which count elements and members. That is enough for some 250
commands, which take 0.2 ms; if each is a mistake that takes long to put into words, it is 4 ms.
"""

LET_GO_BYTES = 2 * KIB
"""What is read of a long body, in elements, before the GIL is let go, for that takes 60 microseconds; some 0.6 ms."""

QUICK_VALUES_BYTES_MAX = 256 * KIB
"""Values that are encoded in one go: that takes 0.6 ms, or 1 ms in base64."""

_SLICE_ANSWERS_MAX = 512
"""Answers that are encoded in one go, likewise."""

_ITEMS_PER_COMMAND = 16
"""JSON values and member names that a body may have for each command that it might have; and words, likewise."""

_COMMAND_BYTES = 512
_ITEM_BYTES = 64
"""What a command takes in memory until it is answered, and each item and word: about, and rather too much."""

_Outcome: TypeAlias = Command | Failure | BadRequest | bytes
_Understood: TypeAlias = tuple[Request, _Outcome]


@dataclass(slots=True)
class BatchRequest:
    """A body that was parsed.

    Attributes:
        atomic: whether it is a unit.
        commands: to be run: those of the elements that are one, in their order.
        requests: how to answer each element; or what it is answered already, for one that is no command.
        memory_bytes: what this takes until it is answered, about.
    """

    atomic: bool
    commands: list[Command]
    requests: list[Request | bytes]
    memory_bytes: int


def is_quick(body: bytes) -> bool:
    """Tells whether `parse` may be called in the event loop.

    Args:
        body: the request body.

    Returns:
        False when it belongs in a worker thread.
    """
    return (
        len(body) <= QUICK_BYTES_MAX
        and body.count(b",") <= QUICK_COMMAS_MAX
        and len(body) - len(body.translate(None, MARKS)) <= QUICK_MARKS_MAX
    )


def parse(body: bytes, limits: Limits, *, atomic: bool) -> BatchRequest:
    """Turns a request body into commands.

    Args:
        body: as received.
        limits: of the product.
        atomic: whether it is a unit.

    Returns:
        The batch: its commands for the engine, the rest for the answer.

    Raises:
        BadRequest: not a list, not strict JSON, too many commands, or a unit with an element that is no command;
            for `answers.refuse`.
    """
    reader = _BatchReader(body, limits, atomic)
    reader.read()
    return reader.finish()


def is_quick_to_answer(reply: Sequence[Reply] | Refused, values_bytes_max: int) -> bool:
    """Tells whether `answer` may be called in the event loop.

    Args:
        reply: of the engine.
        values_bytes_max: as for `encode`, which alone holds it.

    Returns:
        False when the answer belongs in slices, by `encode`.
    """
    if isinstance(reply, Refused):
        return True
    if len(reply) > _SLICE_ANSWERS_MAX:
        return False
    values_bytes = sum([len(one.value) for one in reply if isinstance(one, Value) and one.value is not None])
    return values_bytes <= min(QUICK_VALUES_BYTES_MAX, values_bytes_max)


def answer(batch: BatchRequest, reply: Sequence[Reply] | Refused) -> Answer:
    """Turns the replies to a batch into its answer, in one go.

    Args:
        batch: what was asked.
        reply: what the engine answered; a quick one.

    Returns:
        Status and body.
    """
    if isinstance(reply, Refused):
        return answers.refuse_batch(reply)
    if len(batch.requests) > len(batch.commands):
        return list_of(encode(batch, reply, QUICK_VALUES_BYTES_MAX))
    # Without looking at more than this a SET takes 0.06 microseconds.
    requests: list[Any] = batch.requests
    return list_of(
        [
            b"{}" if type(one) is Ok and request is LINE else _element(request, one)
            for request, one in zip(requests, reply, strict=True)
        ]
    )


def list_of(slices: Iterable[bytes]) -> Answer:
    """Makes the answer of what `encode` gives."""
    return Answer(200, b"[" + b", ".join(slices) + b"]")


def encode(batch: BatchRequest, replies: Sequence[Reply], values_bytes_max: int) -> Iterator[bytes]:
    """Turns the replies to a batch into the elements of its answer, slice by slice.

    Args:
        batch: what was asked.
        replies: what the engine answered.
        values_bytes_max: of values that are read, in all: a `GET` beyond is refused in its place, for a thousand of
            them can read one value a thousand times. What was popped is always answered.

    Yields:
        Some elements with commas between them; what makes a slice takes a millisecond at most, or is one value.
    """
    slice_, slice_bytes, values_bytes = list[bytes](), 0, 0
    results = zip(batch.commands, replies, strict=True)
    for request in batch.requests:
        if isinstance(request, bytes):
            element = request
        else:
            command, reply = next(results)
            if isinstance(reply, Value) and reply.value is not None:
                values_bytes += len(reply.value)
                if values_bytes > values_bytes_max and row_of(command).effect is Effect.READS:
                    values_bytes -= len(reply.value)
                    reply = Failure(Error.TOO_LARGE, f"a batch reads values of at most {values_bytes_max} bytes in all")
            element = _element(request, reply)
        slice_.append(element)
        slice_bytes += len(element)
        if len(slice_) == _SLICE_ANSWERS_MAX or slice_bytes > QUICK_VALUES_BYTES_MAX:
            yield b", ".join(slice_)
            slice_, slice_bytes = [], 0
    if slice_:
        yield b", ".join(slice_)


def _element(request: Request, reply: Reply) -> bytes:
    if request is LINE and type(reply) is Value:
        return b"{%b}" % value_member(reply)  # as below, in half the time
    return answers.answer(request, reply).body or b"{}"


class _BatchReader:
    """Reads one body: each element becomes a request, and beside it a command or what it is refused with."""

    def __init__(self, body: bytes, limits: Limits, atomic: bool) -> None:
        self._limits = limits
        self._atomic = atomic
        self._commands_max = limits.unit_commands_max if atomic else limits.batch_commands_max
        self._items_max = _ITEMS_PER_COMMAND * limits.batch_commands_max
        self._list = ListReader(body, limits, self._items_max)
        self._requests: list[Request] = []
        self._outcomes: list[_Outcome] = []
        self._words = 0
        self._is_long = len(body) > QUICK_BYTES_MAX

    def read(self) -> None:
        """Reads the body to its end."""
        let_go_at = 0
        while self._list.more():
            room = self._commands_max - len(self._outcomes)
            if not room:
                kind = "an atomic batch" if self._atomic else "a pipeline"
                raise BadRequest(f"{kind} has at most {self._commands_max} commands", 413)
            scanned = self._list.scan()
            if scanned is None or not self._take_scanned(*scanned, room):
                request, outcome = self._understand(self._list.read())
                self._take([request], [outcome])
            if self._is_long and self._list.at >= let_go_at:
                let_go_at = self._list.at + LET_GO_BYTES
                time.sleep(0)  # lets go of the GIL: the event loop, if it has to ask for it, gets it after 5 ms only

    def finish(self) -> BatchRequest:
        """Returns what was read, or raises BadRequest for a unit with an element that is no command."""
        requests: list[Request | bytes] = list(self._requests)
        commands: list[Command] = []
        if {Failure, BadRequest, bytes}.isdisjoint(map(type, self._outcomes)):
            commands = self._outcomes  # type: ignore[assignment]  # there is nothing else in it
        else:
            for index, (request, outcome) in enumerate(zip(self._requests, self._outcomes, strict=True)):
                if isinstance(outcome, (Failure, BadRequest, bytes)):
                    requests[index] = self._refusal(index, request, outcome)
                else:
                    commands.append(outcome)
        memory_bytes = _COMMAND_BYTES * len(requests) + _ITEM_BYTES * (self._list.items + self._words)
        return BatchRequest(self._atomic, commands, requests, memory_bytes)

    def _refusal(self, index: int, request: Request, outcome: Failure | BadRequest | bytes) -> bytes:
        if isinstance(outcome, bytes):
            return outcome
        if isinstance(outcome, Failure):
            if not self._atomic:
                return answers.answer(request, outcome).body
            outcome = answers.as_bad_request(outcome)
        outcome.index = index
        raise outcome

    def _take_scanned(self, elements: list[Any], strings: int | None, room: int) -> bool:
        """Takes elements as they were scanned; False when they have to be read one by one to say what is wrong."""
        if len(elements) > room:
            return False
        lines = line.plain_lines(elements, strings, self._limits)
        if lines is not None:
            return self._accept([LINE] * len(elements), lines, 3 * len(elements))
        try:
            check_strings(elements, strings)
            understood = [self._understand_scanned(element) for element in elements]
        except (ValueError, RecursionError):
            return False
        requests, outcomes = zip(*understood, strict=True)
        return self._accept(requests, outcomes, sum(map(count_items, elements)))

    def _understand_scanned(self, element: object) -> _Understood:
        plain = bodies.plain(element, self._limits)
        return plain or self._understand(as_bytes(element, self._limits.json_depth_max - 1))

    def _understand(self, value: Json) -> _Understood:
        try:
            return bodies.read(value, self._limits)
        except BadRequest as bad:
            bad.with_traceback(None)  # or it keeps in memory what it was found in
            return LINE, bad if self._atomic else answers.refuse(bad).body

    def _accept(self, requests: Sequence[Request], outcomes: Sequence[_Outcome], items: int) -> bool:
        if items > self._list.items_left:
            return False
        self._list.accept(items)
        self._take(requests, outcomes)
        return True

    def _take(self, requests: Sequence[Request], outcomes: Sequence[_Outcome]) -> None:
        self._requests += requests
        self._outcomes += outcomes
        if not HEAVY.isdisjoint(map(type, outcomes)):
            self._words += sum(
                weigh(outcome) for outcome in outcomes if isinstance(outcome, Command) and type(outcome) in HEAVY
            )
            if self._words > self._items_max:
                raise BadRequest(f"the commands have more than {self._items_max} words", 413)
