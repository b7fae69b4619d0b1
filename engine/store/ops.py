"""Ops: the effects that are logged. Commands decide, ops are what they decided.

An op carries no condition, no clock and no wait, so that replay gives the same state whenever it is run. On disk an
op is one msgpack array, its code first; in memory it is the same tuple, which is what replay is quick with.

    (1, key, value, deadline_ms | nil)   PUT           set a plain value
    (2, key)                             REMOVE        a key or queue goes
    (3, key, [value, ...])               PUSH          append to a queue, made if need be; in a snapshot perhaps nothing
    (4, key)                             POP_FIRST     take the first value
    (5, key)                             POP_LAST      take the last value
    (6, key, value)                      RETURN_FIRST  put a popped value back to the front
    (7, key, value)                      RETURN_LAST   put a popped value back to the end
    (8, [key, ...])                      EXPIRE        keys whose time was up go
    (9, key, deadline_ms | nil)          DEADLINE      when a plain value expires; nil: never

Codes are for ever: a log of any version must replay.
"""

from __future__ import annotations

from types import NoneType
from typing import Any

import msgpack

PUT = 1
REMOVE = 2
PUSH = 3
POP_FIRST = 4
POP_LAST = 5
RETURN_FIRST = 6
RETURN_LAST = 7
EXPIRE = 8
DEADLINE = 9

Op = tuple[Any, ...]
Record = tuple[Any, ...]
"""What may be an op: read from a log, not checked."""

STORING = {PUT, PUSH}
"""Ops that a full disk refuses; all others let data go, or bring back what was let go."""

PUTS_BACK = {POP_FIRST: RETURN_FIRST, POP_LAST: RETURN_LAST}
"""Which op puts back what a pop took."""

GROWING = {PUSH, RETURN_FIRST, RETURN_LAST}
"""Ops after which somebody who waits for a value may be served."""

_packer = msgpack.Packer(use_bin_type=True)


class BadOp(ValueError):
    """A record that no version of Holdfast writes.

    Attributes:
        index: of the record, among those that were applied together.
    """

    index = 0


def pack(op: Op) -> bytes:
    """Returns the record of an op; an op that cannot be packed raises before anything is applied."""
    packed: bytes = _packer.pack(op)
    return packed


_CODES = range(PUT, DEADLINE + 1)

# The types of a record's fields, and which ops have these.
_SHAPES = {
    (int, bytes, bytes, NoneType): (PUT,),
    (int, bytes, bytes, int): (PUT,),
    (int, bytes): (REMOVE, POP_FIRST, POP_LAST),
    (int, bytes, tuple): (PUSH,),
    (int, bytes, bytes): (RETURN_FIRST, RETURN_LAST),
    (int, tuple): (EXPIRE,),
    (int, bytes, NoneType): (DEADLINE,),
    (int, bytes, int): (DEADLINE,),
}


def check(record: Record) -> Op:
    """Returns a replayed record as an op.

    Raises:
        BadOp: unknown code, wrong number of fields or wrong types.
    """
    code = record[0] if record else None
    if code not in _SHAPES.get(tuple(map(type, record)), ()):
        if type(code) is int and code in _CODES:
            raise BadOp(f"op {code} has the wrong fields")
        raise BadOp(f"unknown op {record[:1]}; a newer Holdfast may have written it, which then reads it")
    last = record[-1]
    if type(last) is tuple:
        fits = all(type(item) is bytes for item in last) and (bool(last) or code == PUSH)
    else:
        fits = type(last) is not int or last >= 0
    if not fits:
        raise BadOp(f"op {code} has the wrong fields")
    return record
