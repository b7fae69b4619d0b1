"""Batches: many commands at once, each by itself, or as a unit.

A pipeline goes out in slices: the commands of a slice to all masters at once, the next slice when they are answered. A
unit is one script, and so on keys of one slot.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgpack

from engine.calls import Batch, Command
from engine.commands.grammar import Effect
from engine.commands.table import HEAVY, TAKING, in_pieces, keys_of, row_of, weigh
from engine.redis.errors import Lost, NotReplicated
from engine.redis.faults import refusal
from engine.redis.performer import TRANSLATIONS, Performer, own_name
from engine.redis.receipts import Posts, Receipt, Receipts, receipts_in
from engine.redis.request import script_call
from engine.redis.scripts import SHRINKING_UNIT, UNIT
from engine.redis.translation import Local, Native, Scripted
from engine.replies import POPPED_ENOUGH, Error, Failure, Refused, Reply, Value

SLICE_MAX = 128
"""Commands of a pipeline that are under way at once; and so many are begun in one turn of the event loop."""

SLICE_POPS_MAX = 16
"""Pops among them: what they bring is in memory before it can be counted."""

PIECE_KEYS_MAX = 1000
"""Keys of one call of Redis from a script: Lua's stack bounds them."""


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
            if type(command) in TAKING:
                pops += 1
                if self._batch.popped_bytes >= self._answer_bytes_max:
                    self._replies[index] = POPPED_ENOUGH
                    continue
            elif type(command) in HEAVY and row_of(command).adds_up:
                pops += min(SLICE_POPS_MAX, weigh(command) // SLICE_POPS_MAX)
            self._under_way += 1
            self._performer.perform(command, self._batch.taken, partial(self._done, index))

    def _done(self, index: int, reply: Reply) -> None:
        self._replies[index] = reply
        if type(self._batch.commands[index]) in TAKING and isinstance(reply, Value):
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
        self._replies: list[Any] = [None] * len(batch.commands)
        self._asked: list[tuple[int, Command, Native | Scripted]] = []  # what Redis is asked to do, by index
        self._token = 0

    def send(self) -> None:
        """Has it done."""
        slot: int | None = None
        keys: dict[bytes, None] = {}
        for index, command in enumerate(self._batch.commands):
            named = keys_of(command)
            refused = own_name(named)
            if refused is not None:
                self._finish(Refused(refused, index))
                return
            for key in named:
                if slot is None:
                    slot = self._router.slot_of(key)
                elif self._router.slot_of(key) != slot:
                    self._finish(Refused(_OTHER_SLOT, index))
                    return
                keys[key] = None
            how = TRANSLATIONS[type(command)]
            if isinstance(how, Local):
                self._replies[index] = how.reply(command)
            else:
                self._asked.append((index, command, how))
        if slot is None:
            self._finish(self._replies)
        else:
            self._post(slot, tuple(keys))

    def _post(self, slot: int, keys: tuple[bytes, ...]) -> None:
        self._token = self._receipts.new_tokens(len(self._asked))
        receipts = self._receipts.key_for(slot)
        aside = b"%b:unit:%b:" % (receipts, secrets.token_hex(12).encode())
        packed = msgpack.packb([_said(command, how) for _, command, how in self._asked], use_bin_type=False)
        words = (receipts, self._token, aside, self._answer_bytes_max, packed)
        stores = any(row_of(command).stores for _, command, _ in self._asked)
        self._router.post(script_call(UNIT if stores else SHRINKING_UNIT, keys, words, slot, self._done))

    def _done(self, result: Any) -> None:
        if isinstance(result, Exception):
            self._take_back(result)
            self._finish(Refused(self._refusal(result)))
            return
        done, *answers = result
        if not done:
            number, answer = answers
            index, command, how = self._asked[number]
            failure = _understood(command, how, answer)
            assert isinstance(failure, Failure), "what refuses a unit is no success"
            self._finish(Refused(failure, index))
            return
        self._batch.taken += self._popped(result)
        for (index, command, how), answer in zip(self._asked, answers, strict=True):
            self._replies[index] = _understood(command, how, answer)
        self._finish(self._replies)

    def _refusal(self, error: Exception) -> Failure:
        commands = self._batch.commands
        stays = next((command for command in commands if type(command) not in TAKING), None)
        failure = refusal(error, stays or commands[0])
        if stays and isinstance(error, NotReplicated) and self._popped(error.result):
            return Failure(failure.error, f"{failure.detail}; what was popped goes back")
        return failure

    def _pops(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Of each command that takes something: its number, its key, and the end from which it takes."""
        for number, (_, command, how) in enumerate(self._asked):
            if isinstance(how, Scripted) and how.end is not None:
                yield number, keys_of(command)[0], how.end

    def _popped(self, result: list[Any]) -> list[Receipt]:
        """Receipts of what a unit has popped."""
        return [
            receipt
            for number, key, end in self._pops()
            for receipt in receipts_in(result[1 + number], self._token + number, key, end)
        ]

    def _take_back(self, error: Exception) -> None:
        """Has go back what was popped for a client that gets an error."""
        if isinstance(error, NotReplicated):
            self._receipts.take_back(self._popped(error.result))
        elif isinstance(error, Lost):
            self._receipts.take_back(Receipt(self._token + number, key) for number, key, _ in self._pops())


_OTHER_SLOT = Failure(
    Error.INVALID_COMMAND,
    "the keys of an atomic batch must lie in one hash slot of the cluster:"
    " give them a common part in braces, like {user1}:name",
)


def _understood(command: Command, how: Native | Scripted, answer: Any) -> Reply:
    return refusal(answer, command) if isinstance(answer, Exception) else how.understand(command, answer)


def _said(command: Command, how: Native | Scripted) -> list[Any]:
    """A command of a unit as the script takes it: a function, its arguments, and which answer refuses it."""
    row = row_of(command)
    refusal = how.refusal.value if row.effect is Effect.CHANGES else None
    if isinstance(how, Scripted):
        return [row.name, [*keys_of(command), *how.words(command)], refusal]
    change = how.undo.value if how.undo is not None else ""
    calls = [
        [len(keys_of(piece)) if change else 0, *how.words(piece)]
        for piece in (in_pieces(command, PIECE_KEYS_MAX) if row.adds_up else (command,))
    ]
    return ["REDIS", [change, *calls], refusal]
