"""Commands on keys, whatever they hold, on both engines."""

from __future__ import annotations

from engine.replies import Integer, Refused, Value
from tests.conformance.cases import ALREADY_EXISTS, AS_IT_WAS, KINDS, NOT_FOUND, OK, Case, either
from tests.conformance.store import Store

CASES: dict[str, Case] = {
    "DELETE k": either((NOT_FOUND, AS_IT_WAS), (Integer(1), {})),
    "DELETE k k x k": either((NOT_FOUND, AS_IT_WAS), (Integer(1), {})),
    "EXISTS k": either((Integer(0), AS_IT_WAS), (Integer(1), AS_IT_WAS)),
    "EXISTS k x k": either((Integer(0), AS_IT_WAS), (Integer(2), AS_IT_WAS)),
    "PERSIST k": {
        **dict.fromkeys(KINDS, (Integer(0), AS_IT_WAS)),
        "expiring": (Integer(1), {b"k": ("value", b"old", None)}),
    },
    "TTL k": {
        **either((Integer(-2), AS_IT_WAS), (Integer(-1), AS_IT_WAS)),
        "expiring": (Integer(2), AS_IT_WAS),
    },
}


async def test_the_seconds_left_are_rounded_up_and_never_zero_while_the_key_is_there(store: Store) -> None:
    for ttl_ms in (1, 30, 60, 999, 1000, 1001, 1500, 2001, 60_000):
        await store.do(f"SET k v PX {ttl_ms}")
        for _ in range(20):
            before_ms = store.left_ms(b"k")
            reply = await store.do("TTL k")
            after_ms = store.left_ms(b"k")
            assert isinstance(reply, Integer)
            if reply != Integer(-2):
                assert before_ms is not None
                assert seconds(after_ms or 1) <= reply.value <= seconds(before_ms or 1)
            else:
                assert after_ms is None


def seconds(ms: int) -> int:
    return -(-ms // 1000)


async def test_exists_counts_a_key_as_often_as_it_is_named_and_delete_once(store: Store) -> None:
    keys = [f"key{number}" for number in range(50)]
    for key in keys[:20]:
        await store.do(f"SET {key} v")
    await store.do("QPUSH key20 a")
    assert await store.do("EXISTS " + " ".join(keys)) == Integer(21)
    assert await store.do("EXISTS " + " ".join([*keys, *keys, keys[0]])) == Integer(43)
    assert await store.do("DELETE " + " ".join([*keys, *keys])) == Integer(21)
    assert await store.do("DELETE " + " ".join(keys)) == NOT_FOUND
    assert await store.do("EXISTS " + " ".join(keys)) == Integer(0)
    assert store.content() == {}


async def test_a_command_takes_as_many_keys_as_it_may_have_words(store: Store) -> None:
    keys = [b"key%d" % number for number in range(65_535)]
    assert await store.do_many(*([b"SET", key, b"v"] for key in keys[::100])) == [OK] * len(keys[::100])
    assert await store.do([b"EXISTS", *keys]) == Integer(len(keys[::100]))
    assert await store.do([b"DELETE", *keys]) == Integer(len(keys[::100]))
    assert store.content() == {}


async def test_a_key_that_persists_keeps_its_value_and_a_refused_unit_gives_its_expiry_back(store: Store) -> None:
    await store.do("SET k v PX 1000000")
    before = store.content()
    assert await store.do_many("PERSIST k", "TTL k", "SET k w NX", atomic=True) == Refused(ALREADY_EXISTS, 2)
    assert store.content() == before
    assert await store.do_many("PERSIST k", "TTL k", "GET k", "PERSIST k", atomic=True) == [
        *(Integer(1), Integer(-1), Value(b"v"), Integer(0))
    ]
    await store.do("SET k v EX 1000")
    assert await store.do("PERSIST k") == Integer(1)
    assert store.content() == {b"k": ("value", b"v", None)}
