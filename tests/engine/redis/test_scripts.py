"""The Lua scripts on a real Redis: all of them load, and a unit is done as a whole or not at all.

What a unit makes of commands of Redis is tried here with more of them than our own commands use.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from coredis.exceptions import ResponseError

from engine.calls import Batch
from engine.commands.table import parse
from engine.limits import Limits
from engine.redis.batches import PIECE_KEYS_MAX, Unit
from engine.redis.receipts import Receipts
from engine.redis.request import Request
from engine.redis.scripts import ALONE, APPEND, SCRIPTS, SHRINKING_UNIT, UNIT
from engine.redis.slots import slot_of
from engine.replies import OK, Error, Failure, Integer, Refused, Reply, Value
from tests.harness.redis import RedisError, RedisNode, Wire

KEYS = ("{k}a", "{k}b", "{k}c", "{k}d")
UNITS = 300


class WireRouter:
    """Has requests done at once, by a real Redis."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def post(self, request: Request) -> None:
        result: Any
        try:
            result = self.wire.do(request.name, *request.serialized_arguments)
        except RedisError as error:
            result = ResponseError(str(error))
        request.done(result)

    def slot_of(self, key: bytes) -> int:
        return slot_of(key)

    def is_up(self, _slot: int) -> bool:
        return True

    def takes_writes(self, _slot: int) -> bool:
        return True


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNode]:
    with RedisNode(tmp_path_factory.mktemp("redis")) as node:
        yield node


@pytest.fixture
def wire(node: RedisNode) -> Iterator[Wire]:
    with node.wire() as wire:
        wire.do("FLUSHALL")
        load_all(wire)
        yield wire


def load_all(wire: Wire) -> list[bytes]:
    return [wire.do("SCRIPT", "LOAD", script.source) for script in SCRIPTS.values()]


def unit(wire: Wire, *lines: str, popped_max: int = 1000) -> list[Reply] | Refused:
    router = WireRouter(wire)
    replies: list[list[Reply] | Refused] = []
    batch = Batch([parse(line.encode().split(b" "), Limits()) for line in lines], True, lambda _batch: None)
    Unit(batch, router, Receipts(b"front", router), popped_max, replies.append).send()
    [reply] = replies
    return reply


def everything(wire: Wire) -> dict[bytes, tuple[bytes, int]]:
    """Each key's content, byte for byte, and when it expires."""
    return {key: (wire.do("DUMP", key), wire.do("PEXPIRETIME", key)) for key in wire.do("KEYS", "*")}


def refused_without_a_trace(wire: Wire, *lines: str, popped_max: int = 1000) -> Refused:
    before = everything(wire)
    reply = unit(wire, *lines, popped_max=popped_max)
    assert everything(wire) == before
    assert isinstance(reply, Refused)
    return reply


def test_redis_takes_all_scripts_for_what_we_call_them(wire: Wire) -> None:
    assert load_all(wire) == list(SCRIPTS)


def test_a_unit_without_a_refusal_is_done(wire: Wire) -> None:
    done = unit(
        wire, "SET {k}a 1", "QPUSH {k}b x y", "QPOP {k}b", "BQPOP {k}b", "GET {k}a", "DELETE {k}a", "EXISTS {k}a"
    )
    assert isinstance(done, list)
    assert done[2:] == [Value(b"y"), Value(b"x"), Value(b"1"), Integer(1), Integer(0)]
    assert set(wire.do("KEYS", "*")) - {b"{k}b"} == {Receipts(b"front", WireRouter(wire)).key_for(slot_of(b"{k}"))}


@pytest.mark.parametrize(
    "lines",
    [
        ("SET {k}plain new",),
        ("SET {k}expiring new",),
        ("SET {k}expiring new PX 1",),
        ("SET {k}queue new",),
        ("SET {k}list new",),
        ("SET {k}hash new PX 1000", "SET {k}hash newer"),
        ("SET {k}new 1", "SET {k}new 2", "DELETE {k}new", "QPUSH {k}new a"),
        ("DELETE {k}plain {k}expiring {k}queue {k}empty {k}list {k}hash {k}nothing",),
        ("DELETE {k}queue", "QPUSH {k}queue a b", "QPOP {k}queue", "BQPOP {k}queue", "SET {k}queue x"),
        ("QPUSH {k}queue a b c",),
        ("QPUSH {k}queue a b c", "QPOP {k}queue", "QPOP {k}queue", "QPOP {k}queue", "QPOP {k}queue"),
        ("QPUSH {k}queue a", "BQPOP {k}queue", "BQPOP {k}queue", "BQPOP {k}queue", "BQPOP {k}queue"),
        ("QPUSH {k}queue a", "DELETE {k}queue", "SET {k}queue v", "DELETE {k}queue", "QPUSH {k}queue b", "QPOP {k}q"),
        ("QPUSH {k}empty a", "BQPOP {k}empty", "QPUSH {k}empty b"),
        ("QPUSH {k}nothing a", "DELETE {k}nothing", "QPUSH {k}nothing b", "BQPOP {k}nothing"),
        ("QPUSH {k}queue " + " ".join(map(str, range(2500))),),
        ("QPUSH {k}nothing " + " ".join(map(str, range(2500))),),
    ],
)  # fmt: skip
def test_a_refusal_at_the_end_takes_everything_back(wire: Wire, lines: tuple[str, ...]) -> None:
    """I7"""
    assert unit(
        wire, "SET {k}plain v", "SET {k}expiring v EX 1000", "QPUSH {k}queue 1 2 3", "QPUSH {k}empty 1", "QPOP {k}empty"
    )
    wire.do("RPUSH", "{k}list", "no", "queue")
    wire.do("HSET", "{k}hash", "a", 1)
    refused = refused_without_a_trace(wire, *lines, "SET {k}other v XX")
    assert refused == Refused(Failure(Error.KEY_NOT_FOUND), len(lines))


def test_a_pop_beyond_what_an_answer_may_hold_is_taken_back_too(wire: Wire) -> None:
    unit(wire, "QPUSH {k}queue aaaa bbbb cccc")
    refused = refused_without_a_trace(wire, "QPOP {k}queue", "BQPOP {k}queue", "QPOP {k}queue", popped_max=8)
    assert refused.index == 2
    assert refused.failure.error is Error.TOO_LARGE


@pytest.mark.parametrize(
    "forbidden", ["rename", "rpush", "set", "lpop", "lset", "rpop", "exists", "llen", "lindex", "get"]
)
def test_an_error_of_redis_in_the_middle_takes_everything_back(node: RedisNode, wire: Wire, forbidden: str) -> None:
    """I7: here Redis does not permit its user everything."""
    unit(wire, "SET {k}plain v", "QPUSH {k}queue 1 2 3")
    wire.do("ACL", "SETUSER", "half", "reset", "on", ">pw", "~*", "+@all", f"-{forbidden}")
    with node.wire() as limited:
        limited.do("AUTH", "half", "pw")
        before = everything(wire)
        refused = unit(
            limited,
            *("QPUSH {k}queue 4", "QPOP {k}queue", "BQPOP {k}queue", "DELETE {k}queue", "QPUSH {k}new a"),
            *("SET {k}plain w", "GET {k}plain", "QLEN {k}new", "SET {k}new v", "SET {k}nothing v XX"),
        )
    assert everything(wire) == before
    assert isinstance(refused, Refused)


def test_a_full_memory_refuses_a_unit_that_grows_and_does_one_that_does_not(wire: Wire) -> None:
    """B3"""
    unit(wire, "SET {k}plain v", "QPUSH {k}queue 1 2 3")
    wire.do("CONFIG", "SET", "maxmemory", 1)
    try:
        refused = refused_without_a_trace(wire, "DELETE {k}plain", "SET {k}plain w")
        done = unit(wire, "QPOP {k}queue", "BQPOP {k}queue", "DELETE {k}plain")
    finally:
        wire.do("CONFIG", "SET", "maxmemory", 0)
    assert refused.failure.error is Error.STORAGE_FULL
    assert done == [Value(b"3"), Value(b"1"), Integer(1)]


def test_a_unit_of_as_many_commands_as_there_may_be(wire: Wire) -> None:
    lines = [line for number in range(250) for line in (f"SET {{k}}{number} v", f"QPUSH {{k}}q {number}")]
    lines += [line for number in range(250) for line in (f"DELETE {{k}}{number}", "QPOP {k}q")]
    refused = refused_without_a_trace(wire, *lines[:999], "SET {k}nothing v XX")
    assert refused.index == 999
    done = unit(wire, *lines)
    assert isinstance(done, list)
    assert len(done) == Limits().unit_commands_max
    assert wire.do("LLEN", "{k}q") == 1


def command(rng: random.Random) -> str:
    key = rng.choice(KEYS)
    value = rng.choice(("v", "w" * 100, "x" * 9000))
    return rng.choice(
        (
            *(f"SET {key} {value}", f"SET {key} {value} EX 100", f"SET {key} {value} NX", f"SET {key} {value} XX"),
            *(f"QPUSH {key} {value}", f"QPUSH {key} 1 2 3", f"QPOP {key}", f"QPOP {key}", f"BQPOP {key} 0"),
            *(f"DELETE {key}", f"DELETE {' '.join(KEYS)}", f"GET {key}", f"QLEN {key}", f"TTL {key}", "PING"),
        )
    )


def test_units_at_random_are_done_or_leave_no_trace(wire: Wire) -> None:
    """I7"""
    rng = random.Random(5)
    refused = 0
    for number in range(UNITS):
        if number % 20 == 0:  # what others left in our place
            wire.do("DEL", *KEYS)
            wire.do("RPUSH", rng.choice(KEYS), "no", "queue")
        for line in (command(rng), command(rng)):  # by themselves, to begin with something
            unit(wire, line)
        lines = [command(rng) for _ in range(rng.randrange(2, 13))]
        before = everything(wire)
        reply = unit(wire, *lines, popped_max=20_000)
        if isinstance(reply, Refused):
            refused += 1
            assert everything(wire) == before, lines
        else:
            assert len(reply) == len(lines)
            assert not [key for key in wire.do("KEYS", "*") if b":unit:" in key], "what was moved aside is gone"
    assert UNITS / 10 < refused < UNITS * 9 / 10


def test_a_queue_that_a_unit_makes_anew_is_another_queue(wire: Wire) -> None:
    unit(wire, "QPUSH {k}q a")
    [first] = wire.do("LRANGE", "{k}q", 0, 0)
    unit(wire, "DELETE {k}q", "QPUSH {k}q a", "DELETE {k}q", "QPUSH {k}q b", "QPUSH {k}r c")
    marks = [first, *wire.do("LRANGE", "{k}q", 0, 0), *wire.do("LRANGE", "{k}r", 0, 0)]
    assert all(one != other for one, other in pairwise(sorted(marks)))
    assert unit(wire, "SET {k}a v") == [OK]


# Commands of Redis in a unit


def asked(change: str, *words: str | int, keys: int = 1, refusal: str | None = "") -> list[Any]:
    """A command of Redis as a unit takes it, with its keys first; '' for `change` is one that only reads."""
    return ["REDIS", [change, [keys if change else 0, *words]], refusal if change else None]


def queue(name: str, *words: Any, refusal: str | None = "") -> list[Any]:
    """A command on queues likewise."""
    return [name, list(words), refusal]


REFUSED = asked("replace", "SET", "{k}nothing", "v", "XX", refusal="false")


def do_all(wire: Wire, *commands: list[Any], script: bytes = UNIT.digest) -> Any:
    packed = msgpack.packb(commands, use_bin_type=False)
    return wire.do("EVALSHA", script, len(KEYS), *KEYS, "{k}receipts", 1, "{k}aside:", 10**6, packed)


def calls(wire: Wire, name: str) -> int:
    """How often Redis has done a command."""
    found = re.search(rb"cmdstat_%b:calls=(\d+)" % name.encode(), wire.do("INFO", "commandstats"))
    return int(found[1]) if found else 0


CHANGED_IN_PLACE = [
    ("APPEND", "{k}v", "more"),
    ("APPEND", "{k}none", "more"),
    ("INCR", "{k}expiring"),
    ("INCR", "{k}none"),
    ("PERSIST", "{k}expiring"),
    ("PERSIST", "{k}none"),
    ("PEXPIRE", "{k}v", 10**6),
    ("PEXPIRE", "{k}expiring", 10**9),
    ("PEXPIRE", "{k}list", 0),
    ("GETDEL", "{k}expiring"),
    ("SETRANGE", "{k}v", 3, "x"),
    ("SADD", "{k}none", "x"),
    ("RPUSH", "{k}list", "x"),
]


@pytest.mark.parametrize("words", CHANGED_IN_PLACE, ids=lambda words: " ".join(map(str, words)))
def test_what_is_changed_in_its_place_is_as_it_was_after_a_refusal(wire: Wire, words: tuple[str | int, ...]) -> None:
    """I7"""
    wire.do_many([("SET", "{k}v", "value"), ("SET", "{k}expiring", 5, "EX", 1000), ("RPUSH", "{k}list", 1, 2)])
    before = everything(wire)
    alone = wire.do(*words)
    after = everything(wire)
    wire.do("FLUSHALL")
    wire.do_many([("SET", "{k}v", "value"), ("SET", "{k}expiring", 5, "EX", 1000), ("RPUSH", "{k}list", 1, 2)])
    before = everything(wire)
    for times in (1, 3):
        refused, index, _ = do_all(wire, *[asked("copy", *words)] * times, REFUSED)
        assert (refused, index) == (0, times)
        assert everything(wire) == before
    assert do_all(wire, asked("copy", *words)) == [1, alone]
    assert {key: dump for key, (dump, _) in everything(wire).items()} == {key: dump for key, (dump, _) in after.items()}


def test_a_key_is_copied_once_however_often_a_unit_changes_it(wire: Wire) -> None:
    wire.do("SET", "{k}a", "v")
    wire.do("CONFIG", "RESETSTAT")
    do_all(wire, *[asked("copy", "APPEND", "{k}a", "w")] * 10, *[asked("copy", "APPEND", "{k}b", "w")] * 10)
    assert (calls(wire, "copy"), wire.do("STRLEN", "{k}a"), wire.do("STRLEN", "{k}b")) == (1, 11, 10)
    assert set(wire.do("KEYS", "*")) == {b"{k}a", b"{k}b"}
    do_all(wire, *[asked("replace", "SET", "{k}a", "w")] * 10, asked("copy", "APPEND", "{k}a", "w"))
    assert (calls(wire, "rename"), calls(wire, "copy")) == (1, 1)


@pytest.mark.parametrize(
    "change",
    [
        queue("QPUSH", "{k}a", "", msgpack.packb(["x"])),
        queue("QPOP", "{k}a", refusal="0"),
        queue("BQPOP", "{k}a", 2, 100),
    ],
    ids=lambda change: change[0],
)
def test_a_key_is_kept_once_more_after_a_change_that_has_an_undo_of_its_own(wire: Wire, change: list[Any]) -> None:
    """I7"""
    unit(wire, "QPUSH {k}a 1 2 3")
    before = everything(wire)
    commands = [asked("copy", "PERSIST", "{k}a"), change, asked("replace", "SET", "{k}a", "v")]
    assert do_all(wire, *commands, REFUSED)[:2] == [0, 3]
    assert everything(wire) == before


@pytest.mark.parametrize("key", ["{k}v", "{k}expiring", "{k}list", "{k}none"])
def test_what_only_changes_an_expiry_is_undone_without_a_copy(wire: Wire, key: str) -> None:
    """I7"""
    wire.do_many([("SET", "{k}v", "value"), ("SET", "{k}expiring", 5, "EX", 1000), ("RPUSH", "{k}list", 1, 2)])
    before = everything(wire)
    wire.do("CONFIG", "RESETSTAT")
    changes = [asked("expiry", "PERSIST", key), asked("expiry", "PEXPIRE", key, 10**9), asked("expiry", "PERSIST", key)]
    assert do_all(wire, *changes, asked("replace", "SET", key, "w"), asked("expiry", "PERSIST", key), REFUSED)[:2] == [
        0,
        5,
    ]
    assert everything(wire) == before
    assert calls(wire, "copy") == 0


def test_a_command_that_changes_two_keys_gives_both_back(wire: Wire) -> None:
    wire.do_many([("SET", "{k}a", "1", "EX", 1000), ("SET", "{k}b", "2")])
    before = everything(wire)
    assert do_all(wire, asked("copy", "RENAME", "{k}a", "{k}b", keys=2), REFUSED)[:2] == [0, 1]
    assert everything(wire) == before
    assert do_all(wire, asked("copy", "RENAME", "{k}a", "{k}b", keys=2)) == [1, b"OK"]
    assert wire.do("GET", "{k}b") == b"1"
    assert wire.do("KEYS", "*") == [b"{k}b"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (asked("copy", "INCR", "{k}word"), "ERR value is not an integer or out of range"),
        (asked("copy", "INCR", "{k}queue"), "WRONGTYPE the key holds a queue"),
        (asked("copy", "INCR", "{k}hash"), "WRONGTYPE the key holds something foreign"),
        (asked("copy", "SADD", "{k}word", "x"), "WRONGTYPE the key holds a plain value"),
        (queue("QPOP", "{k}word", refusal="0"), "WRONGTYPE the key holds a plain value"),
    ],
)
def test_an_error_of_a_command_that_changes_refuses_the_unit_and_one_that_reads_answers_it(
    wire: Wire, command: list[Any], error: str
) -> None:
    wire.do_many([("SET", "{k}word", "w"), ("RPUSH", "{k}queue", "holdfast:queue:1"), ("HSET", "{k}hash", "a", 1)])
    before = everything(wire)
    write = asked("replace", "SET", "{k}a", "v")
    refused, index, answer = do_all(wire, write, command)
    assert (refused, index, str(answer)) == (0, 1, error)
    assert everything(wire) == before
    for key, held in (("{k}queue", "a queue"), ("{k}hash", "something foreign")):
        done, ok, answer = do_all(wire, write, asked("", "STRLEN", key))
        assert (done, ok, str(answer)) == (1, b"OK", f"WRONGTYPE the key holds {held}")


def test_very_many_keys_are_done_in_pieces_whose_counts_add_up(wire: Wire) -> None:
    """As many as a command may have: Lua could not hand them on at once."""
    count = 65_000
    keys = [b"{k}%d" % number for number in range(count)]
    wire.do_many([("SET", key, "v") for key in keys[: 3 * PIECE_KEYS_MAX]])
    wire.do("SET", "{k}expiring", "v", "EX", 1000)
    many = b" ".join([*keys, *keys[:10], b"{k}expiring"]).decode()
    before = everything(wire)
    refused = unit(wire, f"DELETE {many}", f"EXISTS {many}", "SET {k}nothing v XX")
    assert refused == Refused(Failure(Error.KEY_NOT_FOUND), 2)
    assert everything(wire) == before
    found = 3 * PIECE_KEYS_MAX + 1
    assert unit(wire, f"EXISTS {many}", f"DELETE {many}", f"EXISTS {many}") == [
        *(Integer(found + 10), Integer(found), Integer(0)),
    ]
    assert wire.do("DBSIZE") == 0
    assert unit(wire, f"EXISTS {many}", f"DELETE {many}") == Refused(Failure(Error.KEY_NOT_FOUND), 1)


def any_command(rng: random.Random) -> list[Any]:
    key, other = rng.choice(KEYS[:2]), rng.choice(KEYS[:2])
    values = msgpack.packb(["a"] * rng.randrange(1, 4), use_bin_type=False)
    return rng.choice(
        (
            *(asked("replace", "SET", key, "5"), asked("replace", "SET", key, "6", "EX", 100)),
            *(asked("replace", "SET", key, "7", "NX", refusal="false"), asked("replace", "UNLINK", key, other, keys=2)),
            *(asked("copy", "INCR", key), asked("copy", "APPEND", key, "1"), asked("expiry", "PERSIST", key)),
            *(asked("expiry", "PEXPIRE", key, 50_000), asked("", "GET", key), asked("", "EXISTS", key, other)),
            *(queue("QPUSH", key, b"holdfast:queue:%032x" % rng.getrandbits(128), values),),
            *(queue("QPOP", key, refusal="0"), queue("BQPOP", key, 1, 0), queue("BQPOP", key, 3, 10)),
            queue("QLEN", key, refusal=None),
        )
    )


def test_commands_of_redis_and_of_queues_at_random_leave_no_trace_of_a_refused_unit(wire: Wire) -> None:
    """I7"""
    rng = random.Random(7)
    for number in range(2 * UNITS):
        for command in (any_command(rng) for _ in range(6)):
            do_all(wire, command)
        before = everything(wire)
        commands = [any_command(rng) for _ in range(rng.randrange(1, 13))]
        refused, _, _ = do_all(wire, *commands, REFUSED, script=rng.choice((UNIT, SHRINKING_UNIT)).digest)
        assert refused == 0
        assert everything(wire) == before, (number, commands)
    assert not [key for key in wire.do("KEYS", "*") if b"aside" in key]


# How scripts are put together


def test_a_script_has_the_definitions_that_it_uses_and_no_others() -> None:
    assert b"local function pop_first(" in ALONE["BQPOP"].source
    for name, unused in (("QLEN", b"leave_receipts"), ("QPUSH", b"leave_receipts"), ("QPOP", b"pop_first")):
        assert unused not in ALONE[name].source
    assert b"mark_of" in APPEND.source
    for name in ALONE:
        assert b"local function %b(" % name.encode() in UNIT.source


def test_what_a_script_may_do_follows_from_what_its_command_does() -> None:
    first_lines = {name: script.source.splitlines()[0] for name, script in ALONE.items()}
    assert first_lines == {
        "QPUSH": b"#!lua",
        "QPOP": b"#!lua flags=allow-oom",
        "BQPOP": b"#!lua flags=allow-oom",
        "QLEN": b"#!lua flags=no-writes",
    }


def test_a_step_of_an_undoing_that_is_denied_keeps_none_of_the_others(wire: Wire) -> None:
    """I7"""
    unit(wire, "QPUSH {k}q 1 2")
    before = everything(wire)
    wire.do("ACL", "SETUSER", "default", "-del")
    try:
        missing = asked("replace", "UNLINK", "{k}none", refusal="0")
        assert do_all(wire, queue("QPOP", "{k}q", refusal="0"), missing)[:2] == [0, 1]
    finally:
        wire.do("ACL", "SETUSER", "default", "+del")
    assert everything(wire) == before
