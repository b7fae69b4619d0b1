"""Commands become requests for Redis, and its answers replies; what each is and means, its family says.

A command on one key is one request. One on several that adds up is a request for each slot, all at once; what belongs
to one slot is done together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from coredis.exceptions import TryAgainError, WrongTypeError

from engine.calls import Command
from engine.commands.grammar import show
from engine.commands.table import CHANGING, TABLE, keys_of, on_words, row_of, wrong_type
from engine.redis import keys, queues, server, values
from engine.redis.errors import Lost, NotReplicated
from engine.redis.faults import refusal
from engine.redis.format import is_own_key
from engine.redis.receipts import Posts, Receipt, Receipts, receipts_in
from engine.redis.request import Request, script_call
from engine.redis.scripts import ALONE
from engine.redis.translation import Native, Scripted, Translation
from engine.replies import Error, Failure, Reply

Finish: TypeAlias = Callable[[Reply], None]

KEYS_MAX = 256
"""Keys of EXISTS and DELETE that are asked for at once; the next ones when these are answered."""

_NOT_FOREIGN = (b"list", b"string", b"none")
"""What TYPE says of a key that is no proof of its having held something foreign a moment ago."""

TRANSLATIONS: dict[type[Command], Translation] = {
    **values.TRANSLATIONS,
    **keys.TRANSLATIONS,
    **queues.TRANSLATIONS,
    **server.TRANSLATIONS,
}

_SCRIPTS = {row.command: ALONE[row.name] for row in TABLE if isinstance(TRANSLATIONS[row.command], Scripted)}


def own_name(keys: Sequence[bytes]) -> Failure | None:
    """Why a command is refused that names a key of Holdfast's own; None for all others."""
    for key in keys:
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
        named = keys_of(command)
        refused = own_name(named)
        if refused is not None:
            finish(refused)
            return
        how = TRANSLATIONS[type(command)]
        if isinstance(how, Native):
            self._ask(command, named, how, finish)
        elif isinstance(how, Scripted):
            self._run(command, named, how, taken, finish)
        else:
            finish(how.reply(command))

    def _ask(self, command: Command, named: tuple[bytes, ...], how: Native, finish: Finish) -> None:
        """Sends a command that Redis has."""
        if len(named) > 1 and row_of(command).adds_up:
            _Count(self._router, command, how, finish).go_on()
            return
        # No closure: each variable of one is an object for the garbage collector, and that took 3 us a command.
        slot, words = self._router.slot_of(named[0]), how.words(command)
        done = partial(self._answered, command, how, finish)
        self._router.post(Request(words[0], words[1:], slot, done, type(command) in CHANGING))

    def _run(self, command: Command, named: tuple[bytes, ...], how: Scripted, taken: list[Any], finish: Finish) -> None:
        """Runs the script of a command."""
        slot, words, kind = self._router.slot_of(named[0]), how.words(command), type(command)
        if how.end is None:
            done = partial(self._answered, command, how, finish)
        else:
            token = self._receipts.new_tokens(1)
            words = (*words, self._receipts.key_for(slot), token)
            done = partial(self._popped, command, how, token, taken, finish)
        self._router.post(script_call(_SCRIPTS[kind], named, words, slot, done, writes=kind in CHANGING))

    def _answered(self, command: Command, how: Native | Scripted, finish: Finish, answer: Any) -> None:
        if not isinstance(answer, Exception):
            finish(how.understand(command, answer))
        elif isinstance(answer, WrongTypeError) and isinstance(how, Native):
            self._tell_type(command, finish)
        else:
            finish(refusal(answer, command))

    def _tell_type(self, command: Command, finish: Finish) -> None:
        """Says what a key holds, of which Redis has only said that it is of the wrong type.

        By the time that Redis is asked, the key may hold a plain value or nothing: then what was there before was a
        queue, as far as anybody knows.
        """

        def done(kind: Any) -> None:
            finish(wrong_type(command, foreign=isinstance(kind, bytes) and kind not in _NOT_FOREIGN))

        key = keys_of(command)[0]
        self._router.post(Request(b"TYPE", (key,), self._router.slot_of(key), done))

    def _popped(
        self, command: Command, how: Scripted, token: int, taken: list[Any], finish: Finish, answer: Any
    ) -> None:
        """Keeps the receipt of a pop."""
        assert how.end is not None
        (key,) = keys_of(command)
        if isinstance(answer, Exception):
            self._take_back(answer, token, key, how.end)
        else:
            taken += receipts_in(answer, token, key, how.end)
        self._answered(command, how, finish, answer)

    def _take_back(self, error: Exception, token: int, key: bytes, end: bytes) -> None:
        """Has a value go back for which its client gets an error; when it got lost, if it was popped at all."""
        if isinstance(error, Lost):
            self._receipts.take_back([Receipt(token, key)])
        elif isinstance(error, NotReplicated):
            self._receipts.take_back(receipts_in(error.result, token, key, end))


class _Count:
    """A command on keys of any number of slots, whose answers are added up."""

    def __init__(self, router: Posts, command: Command, how: Native, finish: Finish) -> None:
        self._router = router
        self._command = command
        self._changes = type(command) in CHANGING
        self._how = how
        self._keys = keys_of(command)
        self._next = 0
        self._finish = finish
        self._under_way = 0
        self._sum = 0
        self._answered = False
        self._failure: Failure | None = None
        self._behind: Failure | None = None  # what some were done with; the rest is done as well

    def go_on(self) -> None:
        """Asks for the next keys, or finishes."""
        if self._failure is not None and self._answered and self._changes:
            detail = f"{self._failure.detail}; keys in other slots may have been removed"
            self._finish(Failure(self._failure.error, detail))
            return
        some = self._keys[self._next : self._next + KEYS_MAX]
        if not some or self._failure is not None:
            self._finish(self._failure or self._behind or self._how.understand(self._command, self._sum))
            return
        by_slot: defaultdict[int, list[bytes]] = defaultdict(list)
        for key in some:
            by_slot[self._router.slot_of(key)].append(key)
        self._next += KEYS_MAX
        self._under_way = len(by_slot)
        for slot, part in by_slot.items():
            self._post(slot, part)

    def _post(self, slot: int, part: Sequence[bytes]) -> None:
        words = self._how.words(on_words(self._command, part))
        done = partial(self._done, slot, part)
        self._router.post(Request(words[0], words[1:], slot, done, self._changes, divisible=len(part) > 1))

    def _done(self, slot: int, part: Sequence[bytes], result: Any) -> None:
        if isinstance(result, TryAgainError) and len(part) > 1:
            # The slot is being moved, and some keys are here, some there; one by one they are found.
            self._under_way += len(part) - 1
            for key in part:
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
