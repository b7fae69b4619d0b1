from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.store import ops
from engine.store.ops import BadOp, Op, check, pack
from tests.harness.effort import many

GOOD: list[Op] = [
    (ops.PUT, b"k", b"v", None),
    (ops.PUT, b"\xff\x00", b"", 0),
    (ops.PUT, b"", b"v", 2**63),
    (ops.REMOVE, b"k"),
    (ops.PUSH, b"k", (b"v", b"w")),
    (ops.PUSH, b"k", ()),
    (ops.POP_FIRST, b"k"),
    (ops.POP_LAST, b"k"),
    (ops.RETURN_FIRST, b"k", b"v"),
    (ops.RETURN_LAST, b"k", b"v"),
    (ops.EXPIRE, (b"k", b"l")),
    (ops.DEADLINE, b"k", 2**63),
    (ops.DEADLINE, b"k", None),
]


@pytest.mark.parametrize("op", GOOD)
def test_an_op_comes_back_from_its_record_as_it_was(op: Op) -> None:
    assert check(msgpack.unpackb(pack(op), use_list=False)) == op


def test_the_codes_are_for_ever() -> None:
    """A log of any version must replay: a number here may be added, never changed."""
    codes = {name: value for name, value in vars(ops).items() if name.isupper() and type(value) is int}
    assert codes == {
        "PUT": 1,
        "REMOVE": 2,
        "PUSH": 3,
        "POP_FIRST": 4,
        "POP_LAST": 5,
        "RETURN_FIRST": 6,
        "RETURN_LAST": 7,
        "EXPIRE": 8,
        "DEADLINE": 9,
    }


@pytest.mark.parametrize(
    "record",
    [
        (),
        (0,),
        (10, b"k"),
        (-1, b"k"),
        (True, b"k", b"v", None),
        (1.0, b"k", b"v", None),
        ("PUT", b"k", b"v", None),
        ((1,), b"k"),
        (None,),
        (ops.PUT,),
        (ops.PUT, b"k", b"v"),
        (ops.PUT, b"k", b"v", None, None),
        (ops.PUT, "k", b"v", None),
        (ops.PUT, b"k", "v", None),
        (ops.PUT, b"k", 1, None),
        (ops.PUT, b"k", b"v", -1),
        (ops.PUT, b"k", b"v", 1.5),
        (ops.PUT, b"k", b"v", True),
        (ops.PUT, b"k", b"v", b"1"),
        (ops.REMOVE, None),
        (ops.REMOVE, b"k", b"l"),
        (ops.PUSH, b"k", b"v"),
        (ops.PUSH, b"k", (b"v", "w")),
        (ops.POP_FIRST, 1),
        (ops.POP_LAST,),
        (ops.RETURN_FIRST, b"k"),
        (ops.RETURN_LAST, b"k", None),
        (ops.EXPIRE, b"k"),
        (ops.EXPIRE, ()),
        (ops.EXPIRE, ((b"k",),)),
        (ops.DEADLINE, b"k"),
        (ops.DEADLINE, b"k", b"v"),
        (ops.DEADLINE, b"k", -1),
    ],
)
def test_a_record_that_is_no_op_is_refused(record: tuple[Any, ...]) -> None:
    """A12"""
    with pytest.raises(BadOp):
        check(record)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.binary(), st.text(), st.floats())


@settings(max_examples=many(200))
@given(record=st.lists(SCALARS | st.tuples(SCALARS), max_size=5).map(tuple))
def test_any_record_is_an_op_or_a_bad_op(record: tuple[Any, ...]) -> None:
    """A12"""
    with contextlib.suppress(BadOp):
        assert pack(check(record))


@pytest.mark.parametrize("op", [(ops.PUT, b"k", b"v", 2**64), (ops.PUT, b"k", object(), None)])
def test_packing_what_cannot_be_packed_leaves_the_packer_as_good_as_new(op: Op) -> None:
    with pytest.raises((OverflowError, TypeError)):
        pack(op)
    assert check(msgpack.unpackb(pack(GOOD[0]), use_list=False)) == GOOD[0]
