"""Batches: many commands at once, each by itself, or as a unit.

A pipeline goes out in slices: the commands of a slice to all masters at once, the next slice when they are answered. A
unit is one script, and so on keys of one slot.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack

from engine.calls import Batch, Command
from engine.commands.keys import Delete, Exists
from engine.commands.queues import BQPop, QPop, QPush
from engine.commands.table import keys_of, row_of, wrong_type
from engine.commands.values import Set
from engine.redis.errors import Lost, NotReplicated
from engine.redis.faults import refusal, refusal_of_script
from engine.redis.format import MARK_PREFIX, new_mark
from engine.redis.performer import Performer, own_name
from engine.redis.receipts import FIRST, LAST, Posts, Receipt, Receipts, receipt_of
from engine.redis.request import script_call
from engine.redis.scripts import SHRINKING_UNIT, UNIT
from engine.replies import NULL, OK, POPPED_ENOUGH, Error, Failure, Integer, Ok, Refused, Reply, Value

SLICE_MAX = 128
"""Commands of a pipeline that are under way at once; and so many are begun in one turn of the event loop."""

SLICE_POPS_MAX = 16
"""Pops among them: what they bring is in memory before it can be counted."""


_END: dict[type[Command], bytes] = {BQPop: FIRST, QPop: LAST}


class Pipeline:
    """A batch whose commands are done each by itself.

    Args:
        batch: whose `taken` is added to.
        performer: has the commands done.
        answer_bytes_max: values popped by it: about, the last slice may go beyond.
        finish: called once with the replies.
        gone: whether the client has left: then the rest is not done.
    """

    def __init__(
        self,
        batch: Batch,
        performer: Performer,
        answer_bytes_max: int,
        finish: Callable[[list[Reply]], None],
        gone: Callable[[], bool],
    ) -> None:
        self._batch = batch
        self._performer = performer
        self._answer_bytes_max = answer_bytes_max
        self._finish = finish
        self._gone = gone
        self._replies: list[Any] = [None] * len(batch.commands)
        self._next = 0
        self._under_way = 0

    def go_on(self) -> None:
        """Sends the next slice, or finishes."""
        while self._next < len(self._replies) and not self._gone():
            self._under_way = 1  # this loop: an answer can come from within
            self._send_slice()
            self._under_way -= 1
            if self._under_way:
                return
        self._finish(self._replies)

    def _send_slice(self) -> None:
        pops = 0
        first = self._next
        while self._next < len(self._replies) and self._next < first + SLICE_MAX and pops < SLICE_POPS_MAX:
            index, command = self._next, self._batch.commands[self._next]
            self._next += 1
            if isinstance(command, (QPop, BQPop)):
                pops += 1
                if self._batch.popped_bytes >= self._answer_bytes_max:
                    self._replies[index] = POPPED_ENOUGH
                    continue
            elif isinstance(command, (Delete, Exists)) and len(command.keys) > 1:
                pops += min(SLICE_POPS_MAX, len(command.keys) // SLICE_POPS_MAX)
            self._under_way += 1
            self._performer.perform(command, self._batch.taken, partial(self._done, index))

    def _done(self, index: int, reply: Reply) -> None:
        self._replies[index] = reply
        if isinstance(self._batch.commands[index], (QPop, BQPop)) and isinstance(reply, Value):
            self._batch.popped_bytes += len(reply.value or b"")
        self._under_way -= 1
        if not self._under_way:
            self.go_on()


class Unit:
    """A batch that is done as a whole, or not at all.

    Args:
        batch: whose `taken` is added to.
        router: sends the request.
        receipts: of what is popped.
        answer_bytes_max: values that it may pop.
        finish: called once with the replies, or why nothing was done.
    """

    def __init__(
        self,
        batch: Batch,
        router: Posts,
        receipts: Receipts,
        answer_bytes_max: int,
        finish: Callable[[list[Reply] | Refused], None],
    ) -> None:
        self._batch = batch
        self._router = router
        self._receipts = receipts
        self._answer_bytes_max = answer_bytes_max
        self._finish = finish
        self._token = 0

    def send(self) -> None:
        """Has it done."""
        commands = self._batch.commands
        slot: int | None = None
        keys: dict[bytes, None] = {}
        for index, command in enumerate(commands):
            refused = own_name(command)
            if refused is not None:
                self._finish(Refused(refused, index))
                return
            for key in keys_of(command):
                if slot is None:
                    slot = self._router.slot_of(key)
                elif self._router.slot_of(key) != slot:
                    self._finish(Refused(_OTHER_SLOT, index))
                    return
                keys[key] = None
        if slot is None:
            self._finish([Value(b"PONG")] * len(commands))
            return
        self._post(slot, tuple(keys))

    def _post(self, slot: int, keys: tuple[bytes, ...]) -> None:
        commands = self._batch.commands
        self._token = self._receipts.new_tokens(len(commands))
        receipts = self._receipts.key_for(slot)
        mark = new_mark()[len(MARK_PREFIX) :][:24]
        words = (
            *(receipts, self._token, mark, receipts + b":unit:" + mark + b":", self._answer_bytes_max),
            msgpack.packb([_words(command) for command in commands], use_bin_type=False),
        )
        grows = any(isinstance(command, (Set, QPush)) for command in commands)
        self._router.post(script_call(UNIT if grows else SHRINKING_UNIT, keys, words, slot, self._done))

    def _done(self, result: Any) -> None:
        if isinstance(result, Exception):
            self._take_back(result)
            self._finish(Refused(self._refusal(result)))
        elif result[0] == 0:
            _, index, error = result
            self._finish(Refused(_failure(self._batch.commands[index], error), index))
        else:
            self._batch.taken += self._popped(result)
            commands = self._batch.commands
            self._finish([_reply(command, answer) for command, answer in zip(commands, result[1:], strict=True)])

    def _refusal(self, error: Exception) -> Failure:
        commands = self._batch.commands
        stays = next((command for command in commands if not isinstance(command, (QPop, BQPop))), None)
        failure = refusal(error, stays or commands[0])
        if stays and isinstance(error, NotReplicated) and self._popped(error.result):
            return Failure(failure.error, f"{failure.detail}; what was popped goes back")
        return failure

    def _popped(self, result: list[Any]) -> list[Receipt]:
        """Receipts of what a unit has popped."""
        return [
            receipt_of(self._token + index, command.key, _END[type(command)], answer[1], answer[2])
            for index, (command, answer) in enumerate(zip(self._batch.commands, result[1:], strict=True))
            if isinstance(command, (QPop, BQPop)) and answer[0] == b"popped"
        ]

    def _take_back(self, error: Exception) -> None:
        """Has go back what was popped for a client that gets an error."""
        if isinstance(error, NotReplicated):
            self._receipts.take_back(self._popped(error.result))
        elif isinstance(error, Lost):
            self._receipts.take_back(
                Receipt(self._token + index, command.key)
                for index, command in enumerate(self._batch.commands)
                if isinstance(command, (QPop, BQPop))
            )


_OTHER_SLOT = Failure(
    Error.INVALID_COMMAND,
    "the keys of a unit must lie in one hash slot of the cluster: give them a common part in braces, like {user1}:name",
)


def _words(command: Command) -> list[bytes]:
    """A command of a unit as the script takes it."""
    name = row_of(command).name.encode()
    if isinstance(command, Set):
        ttl = b"" if command.ttl_ms is None else b"%d" % command.ttl_ms
        condition = b"" if command.condition is None else command.condition.value.encode()
        return [name, command.key, command.value, ttl, condition]
    if isinstance(command, QPush):
        return [name, command.key, *command.values]
    return [name, *keys_of(command)]


def _reply(command: Command, answer: list[Any]) -> Reply:
    """What the script answers to one command, as a reply."""
    match answer:
        case [b"ok", length]:
            return Ok(length=length) if isinstance(command, QPush) else OK
        case [b"integer", number]:
            return Integer(number)
        case [b"value", value] | [b"popped", _, value]:
            return Value(value)
        case [b"null"]:
            return NULL
    return _failure(command, answer[1])


_ERRORS = {error.value for error in Error}


def _failure(command: Command, error: bytes) -> Failure:
    match error:
        case b"plain" | b"foreign":
            return wrong_type(command, foreign=error == b"foreign")
        case b"queue":
            return wrong_type(command)
        case b"popped enough":
            return POPPED_ENOUGH
    text = error.decode()
    return Failure(Error(text)) if text in _ERRORS else refusal_of_script(text, command)
