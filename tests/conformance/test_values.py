"""Commands on plain values, and how these expire, on both engines."""

from __future__ import annotations

import pytest

from engine.commands.grammar import CommandError
from engine.replies import Error, Failure, Integer, Value
from tests.conformance.cases import ALREADY_EXISTS, AS_IT_WAS, GET_OF_A_QUEUE, KINDS, NEW, NOT_FOUND, OK, Case, either
from tests.conformance.store import Store

STRLEN_OF_A_QUEUE = Failure(Error.WRONG_TYPE, "the key holds a queue, STRLEN reads plain values")

CASES: dict[str, Case] = {
    "SET k v": dict.fromkeys(KINDS, (OK, NEW)),
    "SET k v EX 2": dict.fromkeys(KINDS, (OK, {b"k": ("value", b"v", 2000)})),
    "SET k v NX": either((OK, NEW), (ALREADY_EXISTS, AS_IT_WAS)),
    "SET k v XX": either((NOT_FOUND, AS_IT_WAS), (OK, NEW)),
    "GET k": {
        **either((NOT_FOUND, AS_IT_WAS), (Value(b"old"), AS_IT_WAS)),
        "queue": (GET_OF_A_QUEUE, AS_IT_WAS),
        "emptied": (GET_OF_A_QUEUE, AS_IT_WAS),
    },
    "STRLEN k": {
        **either((Integer(0), AS_IT_WAS), (Integer(3), AS_IT_WAS)),
        "queue": (STRLEN_OF_A_QUEUE, AS_IT_WAS),
        "emptied": (STRLEN_OF_A_QUEUE, AS_IT_WAS),
    },
}


async def test_a_set_drops_an_older_expiry_and_a_refused_one_does_not(store: Store) -> None:
    await store.do("SET k v EX 1000")
    before = store.content()
    assert await store.do("SET k w NX") == Failure(Error.KEY_ALREADY_EXISTS)
    assert await store.do("SET k w EX 5 NX") == Failure(Error.KEY_ALREADY_EXISTS)
    assert store.content() == before
    assert await store.do("SET k w XX") == OK
    assert await store.do("TTL k") == Integer(-1)
    assert await store.do("SET k w PX 5000000 XX") == OK
    await store.do("DELETE k")
    await store.do("QPUSH k a")
    assert await store.do("TTL k") == Integer(-1), "and a queue has none"


async def test_the_longest_expiry_is_kept(store: Store) -> None:
    assert await store.do(f"SET k v EX {10**12}") == OK
    left = await store.do("TTL k")
    assert isinstance(left, Integer)
    assert 10**12 - 60 < left.value <= 10**12
    assert await store.do(f"SET k v PX {10**15}") == OK
    assert await store.do("GET k") == Value(b"v")


async def test_an_expiry_beyond_the_longest_is_refused(store: Store) -> None:
    for option in (f"EX {10**12 + 1}", f"PX {10**15 + 1}", f"PX {2**63 - 1}", f"EX {2**63}", f"PX {10**30}"):
        with pytest.raises(CommandError):
            await store.do(f"SET k v {option}")
    assert store.content() == {}


async def test_all_commands_of_a_unit_agree_on_whether_a_key_has_expired(store: Store) -> None:
    """D5: across the very instant, on both engines."""
    seen = set()
    for _ in range(20):
        await store.do("SET {k} v PX 4")
        gone = False
        while not gone:
            replies = await store.do_many("GET {k}", "TTL {k}", "EXISTS {k}", "GET {k}", atomic=True)
            gone = replies == [NOT_FOUND, Integer(-2), Integer(0), NOT_FOUND]
            assert gone or replies == [Value(b"v"), Integer(1), Integer(1), Value(b"v")]
            seen.add(gone)
    assert seen == {True, False}


async def test_a_length_is_in_bytes(store: Store) -> None:
    for value in (b"", "ä€😀".encode(), b"\x00\xff" * 1000):
        await store.do([b"SET", b"k", value])
        assert await store.do("STRLEN k") == Integer(len(value))
