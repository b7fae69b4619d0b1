"""Commands on queues, on both engines; who waits is in test_waiting.py, who leaves in test_leaving.py."""

from __future__ import annotations

from engine.replies import Error, Failure, Integer, Ok, Value
from tests.conformance.cases import AS_IT_WAS, EMPTY, NULL, OK, WAITS, Case, of_queues, queue_of
from tests.conformance.store import Store

CASES: dict[str, Case] = {
    "QPUSH k a b": of_queues(
        "QPUSH",
        gone=(Ok(length=2), queue_of(b"a", b"b")),
        queue=(Ok(length=5), queue_of(b"first", b"mid", b"last", b"a", b"b")),
        emptied=(Ok(length=2), queue_of(b"a", b"b")),
    ),
    "QPOP k": of_queues(
        "QPOP",
        gone=(NULL, AS_IT_WAS),
        queue=(Value(b"last"), queue_of(b"first", b"mid")),
        emptied=(EMPTY, AS_IT_WAS),
    ),
    "BQPOP k": of_queues(
        "BQPOP",
        gone=(WAITS, AS_IT_WAS),
        queue=(Value(b"first"), queue_of(b"mid", b"last")),
        emptied=(WAITS, AS_IT_WAS),
    ),
    "BQPOP k 0": of_queues(
        "BQPOP",
        gone=(NULL, AS_IT_WAS),
        queue=(Value(b"first"), queue_of(b"mid", b"last")),
        emptied=(NULL, AS_IT_WAS),
    ),
    "QLEN k": of_queues(
        "QLEN",
        gone=(Integer(0), AS_IT_WAS),
        queue=(Integer(3), AS_IT_WAS),
        emptied=(Integer(0), AS_IT_WAS),
    ),
}


async def test_qpop_takes_the_last_and_bqpop_the_first(store: Store) -> None:
    assert await store.do("QPUSH q a b c d") == Ok(length=4)
    assert await store.do("QPUSH q e") == Ok(length=5)
    replies = [await store.do(line) for line in ("QPOP q", "BQPOP q", "QPOP q", "BQPOP q 0", "BQPOP q 5")]
    assert replies == [Value(b"e"), Value(b"a"), Value(b"d"), Value(b"b"), Value(b"c")]


async def test_an_emptied_queue_exists_until_it_is_deleted_or_overwritten(store: Store) -> None:
    for pop in ("QPOP q", "BQPOP q"):
        await store.do("QPUSH q a")
        assert await store.do(pop) == Value(b"a")
        assert store.content() == {b"q": ("queue",)}
        assert await store.do("EXISTS q") == Integer(1)
        assert await store.do("QPOP q") == Failure(Error.QUEUE_IS_EMPTY)
        assert await store.do("BQPOP q 0") == NULL
        assert await store.do("SET q v NX") == Failure(Error.KEY_ALREADY_EXISTS)
        assert await store.do("DELETE q") == Integer(1)
        assert await store.do("QPOP q") == NULL
    await store.do_many("QPUSH q a", "QPOP q")
    assert await store.do("SET q v XX") == OK
    assert await store.do("GET q") == Value(b"v")
