"""Commands on plain values, and how these expire, on both engines."""

from __future__ import annotations

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


async def test_a_length_is_in_bytes(store: Store) -> None:
    for value in (b"", "ä€😀".encode(), b"\x00\xff" * 1000):
        await store.do([b"SET", b"k", value])
        assert await store.do("STRLEN k") == Integer(len(value))
