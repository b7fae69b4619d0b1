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

Codes are for ever: a log of any version must replay.
"""

from __future__ import annotations

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

Op = tuple[Any, ...]

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


def _is_bytes(value: object) -> bool:
    return type(value) is bytes


def _is_deadline(value: object) -> bool:
    return value is None or (type(value) is int and value >= 0)


def _is_list(value: object) -> bool:
    return type(value) is tuple and all(type(item) is bytes for item in value)


def _is_filled_list(value: object) -> bool:
    return _is_list(value) and bool(value)


_SHAPES = {
    PUT: (_is_bytes, _is_bytes, _is_deadline),
    REMOVE: (_is_bytes,),
    PUSH: (_is_bytes, _is_list),
    POP_FIRST: (_is_bytes,),
    POP_LAST: (_is_bytes,),
    RETURN_FIRST: (_is_bytes, _is_bytes),
    RETURN_LAST: (_is_bytes, _is_bytes),
    EXPIRE: (_is_filled_list,),
}


def check(record: tuple[Any, ...]) -> Op:
    """Returns a replayed record as an op.

    Raises:
        BadOp: unknown code, wrong number of fields or wrong types.
    """
    shape = _SHAPES.get(record[0]) if record and type(record[0]) is int else None
    if shape is None:
        raise BadOp(f"unknown op {record[:1]}")
    if len(record) != len(shape) + 1 or not all(fits(field) for fits, field in zip(shape, record[1:], strict=True)):
        raise BadOp(f"op {record[0]} has the wrong fields")
    return record
