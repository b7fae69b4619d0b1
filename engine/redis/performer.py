"""Commands become requests for Redis, and its answers replies.

A command on one key is one request. EXISTS and DELETE of several are one for each slot, all at once; what belongs to
one slot is done together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgpack
from coredis.exceptions import TryAgainError, WrongTypeError

from engine.calls import Command
from engine.commands.grammar import show
from engine.commands.keys import Delete, Exists, Ttl
from engine.commands.queues import BQPop, QLen, QPop, QPush
from engine.commands.server import Ping
from engine.commands.table import keys_of, wrong_type
from engine.commands.values import Condition, Get, Set
from engine.redis.errors import Lost, NotReplicated
from engine.redis.faults import refusal
from engine.redis.format import is_own_key, new_mark
from engine.redis.receipts import FIRST, LAST, Posts, Receipt, Receipts, receipt_of
from engine.redis.request import Request, script_call
from engine.redis.scripts import BQPOP, QLEN, QPOP, QPUSH
from engine.replies import NULL, OK, PONG, Error, Failure, Integer, Ok, Reply, Value

Finish: TypeAlias = Callable[[Reply], None]

KEYS_MAX = 256
"""Keys of EXISTS and DELETE that are asked for at once; the next ones when these are answered."""

EMPTY = Failure(Error.QUEUE_IS_EMPTY)
KEY_NOT_FOUND = Failure(Error.KEY_NOT_FOUND)


def own_name(command: Command) -> Failure | None:
    """Why a command is refused that names a key of Holdfast's own; None for all others."""
    for key in keys_of(command):
        if b"holdfast:" in key and is_own_key(key):
            return Failure(Error.INVALID_COMMAND, f"the name {show(key)} is Holdfast's own in Redis")
    return None


class Performer:
    """Has single commands done.

    Args:
        router: sends requests.
        receipts: of what is popped.
    """

    def __init__(self, router: Posts, receipts: Receipts) -> None:
        self._router = router
        self._receipts = receipts

    def perform(self, command: Command, taken: list[Any], finish: Finish) -> None:
        """Has one command done; none of them waits for a value.

        Args:
            command: as parsed.
            taken: receipts of what is popped are added here.
            finish: called once with the reply, also from within.
        """
        refused = own_name(command)
        if refused is not None:
            finish(refused)
        else:
            _PERFORM[type(command)](self, command, taken, finish)

    def _post(
        self,
        command: Command,
        words: tuple[bytes, ...],
        key: bytes,
        finish: Finish,
        understand: Callable[[Any], Reply],
    ) -> None:
        """Sends a Redis command, and has its answer understood."""
        done = _understood(command, finish, understand)
        writes = isinstance(command, Set)
        self._router.post(Request(words[0], words[1:], self._router.slot_of(key), done, writes))

    def _set(self, command: Set, _taken: list[Any], finish: Finish) -> None:
        words = [b"SET", command.key, command.value]
        if command.ttl_ms is not None:
            words += (b"PX", b"%d" % command.ttl_ms)
        if command.condition is not None:
            words.append(command.condition.value.encode())
        self._post(command, tuple(words), command.key, finish, partial(_after_set, command.condition))

    def _get(self, command: Get, _taken: list[Any], finish: Finish) -> None:
        understood = _understood(command, finish, _after_get)

        def done(result: Any) -> None:
            if isinstance(result, WrongTypeError):
                self._tell_type(command, finish)
            else:
                understood(result)

        self._router.post(Request(b"GET", (command.key,), self._router.slot_of(command.key), done))

    def _tell_type(self, command: Get, finish: Finish) -> None:
        """Says what a key holds, of which Redis has only said that it is no plain value."""

        def done(kind: Any) -> None:
            finish(wrong_type(command, foreign=isinstance(kind, bytes) and kind != b"list"))

        self._router.post(Request(b"TYPE", (command.key,), self._router.slot_of(command.key), done))

    def _ttl(self, command: Ttl, _taken: list[Any], finish: Finish) -> None:
        self._post(command, (b"PTTL", command.key), command.key, finish, _after_pttl)

    def _ping(self, _command: Ping, _taken: list[Any], finish: Finish) -> None:
        finish(PONG)

    # Queues

    def _qpush(self, command: QPush, _taken: list[Any], finish: Finish) -> None:
        done = _understood(command, finish, Ok)
        values = msgpack.packb(command.values, use_bin_type=False)
        slot = self._router.slot_of(command.key)
        self._router.post(script_call(QPUSH, (command.key,), (new_mark(), values), slot, done))

    def _qlen(self, command: QLen, _taken: list[Any], finish: Finish) -> None:
        done = _understood(command, finish, Integer)
        slot = self._router.slot_of(command.key)
        self._router.post(script_call(QLEN, (command.key,), (), slot, done, writes=False))

    def _qpop(self, command: QPop, taken: list[Any], finish: Finish) -> None:
        slot = self._router.slot_of(command.key)
        token = self._receipts.new_tokens(1)
        done = partial(self._popped, command, token, LAST, taken, finish)
        self._router.post(script_call(QPOP, (command.key,), (self._receipts.key_for(slot), token), slot, done))

    def _bqpop(self, command: BQPop, taken: list[Any], finish: Finish) -> None:
        slot = self._router.slot_of(command.key)
        token = self._receipts.new_tokens(1)
        done = partial(self._popped, command, token, FIRST, taken, finish)
        words = (self._receipts.key_for(slot), token, 1, 0)
        self._router.post(script_call(BQPOP, (command.key,), words, slot, done))

    def _popped(
        self, command: QPop | BQPop, token: int, end: bytes, taken: list[Any], finish: Finish, result: Any
    ) -> None:
        if isinstance(result, Exception):
            self._take_back(Receipt(token, command.key), end, result)
            finish(refusal(result, command))
        elif isinstance(result, list):
            mark, value = result
            taken.append(receipt_of(token, command.key, end, mark, value))
            finish(Value(value))
        else:
            finish(NULL if result is None else EMPTY)

    def _take_back(self, receipt: Receipt, end: bytes, error: Exception) -> None:
        """Has a value go back for which its client gets an error; when it got lost, if it was popped at all."""
        if isinstance(error, Lost):
            self._receipts.take_back([receipt])
        elif isinstance(error, NotReplicated):
            mark, value = error.result
            self._receipts.take_back([receipt_of(receipt.token, receipt.key, end, mark, value)])

    # Several keys

    def _delete(self, command: Delete, _taken: list[Any], finish: Finish) -> None:
        # One that is named twice is removed once: Redis says so itself, and here it would take time for very many.
        _Count(self._router, command, b"UNLINK", lambda reply: finish(_after_delete(reply))).go_on()

    def _exists(self, command: Exists, _taken: list[Any], finish: Finish) -> None:
        _Count(self._router, command, b"EXISTS", finish).go_on()


class _Count:
    """A command on keys of any number of slots, whose answers are added up."""

    def __init__(self, router: Posts, command: Delete | Exists, name: bytes, finish: Finish) -> None:
        self._router = router
        self._command = command
        self._name = name
        self._next = 0
        self._finish = finish
        self._under_way = 0
        self._sum = 0
        self._answered = False
        self._failure: Failure | None = None
        self._behind: Failure | None = None  # what some were done with; the rest is done as well

    def go_on(self) -> None:
        """Asks for the next keys, or finishes."""
        if self._failure is not None and self._answered and isinstance(self._command, Delete):
            detail = f"{self._failure.detail}; keys in other slots may have been removed"
            self._finish(Failure(self._failure.error, detail))
            return
        some = self._command.keys[self._next : self._next + KEYS_MAX]
        if not some or self._failure is not None:
            self._finish(self._failure or self._behind or Integer(self._sum))
            return
        by_slot: defaultdict[int, list[bytes]] = defaultdict(list)
        for key in some:
            by_slot[self._router.slot_of(key)].append(key)
        self._next += KEYS_MAX
        self._under_way = len(by_slot)
        for slot, keys in by_slot.items():
            self._post(slot, keys)

    def _post(self, slot: int, keys: Sequence[bytes]) -> None:
        writes = isinstance(self._command, Delete)
        done = partial(self._done, slot, keys)
        self._router.post(Request(self._name, tuple(keys), slot, done, writes, divisible=len(keys) > 1))

    def _done(self, slot: int, keys: Sequence[bytes], result: Any) -> None:
        if isinstance(result, TryAgainError) and len(keys) > 1:
            # The slot is being moved, and some keys are here, some there; one by one they are found.
            self._under_way += len(keys) - 1
            for key in keys:
                self._post(slot, [key])
            return
        if isinstance(result, NotReplicated):
            self._behind = refusal(result, self._command)
            self._answered = True
        elif isinstance(result, Exception):
            if self._failure is None or isinstance(result, Lost):  # which says most
                self._failure = refusal(result, self._command)
        else:
            self._sum += result
            self._answered = True
        self._under_way -= 1
        if not self._under_way:
            self.go_on()


def _understood(command: Command, finish: Finish, understand: Callable[[Any], Reply]) -> Callable[[Any], None]:
    """Makes what finishes a command with a result: an error is refused, an answer understood."""

    def done(result: Any) -> None:
        finish(refusal(result, command) if isinstance(result, Exception) else understand(result))

    return done


def _after_set(condition: Condition | None, result: Any) -> Reply:
    if result is not None:
        return OK
    return Failure(Error.KEY_ALREADY_EXISTS) if condition is Condition.IF_MISSING else KEY_NOT_FOUND


def _after_get(result: Any) -> Reply:
    return KEY_NOT_FOUND if result is None else Value(result)


def _after_pttl(result: Any) -> Reply:
    return Integer(result if result < 0 else max(1, math.ceil(result / 1000)))  # 0 is the last millisecond


def _after_delete(reply: Reply) -> Reply:
    return KEY_NOT_FOUND if reply == Integer(0) else reply


# A row maps each command to a method that takes that very type; a dict's type cannot say so, hence Any.
_PERFORM: dict[type[Command], Callable[[Performer, Any, list[Any], Finish], None]] = {
    Set: Performer._set,
    Get: Performer._get,
    Delete: Performer._delete,
    Exists: Performer._exists,
    QPush: Performer._qpush,
    QPop: Performer._qpop,
    BQPop: Performer._bqpop,
    QLen: Performer._qlen,
    Ttl: Performer._ttl,
    Ping: Performer._ping,
}
