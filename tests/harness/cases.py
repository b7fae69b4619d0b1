"""The contract as one table: what every command answers for every kind of key, and what it leaves.

The pure state is held against it (tests/engine/store/test_state.py), and so is each engine (tests/conformance/).
"""

from __future__ import annotations

from engine.replies import Error, Failure, Integer, Ok, Reply, Value
from tests.harness.model import Content

KINDS = ("missing", "plain", "expiring", "expired", "queue", "emptied")
"""What the key `k` may be. Plain values are `old`, for 1.5 seconds if they expire; the queue holds first, mid, last."""

_GONE = ("missing", "expired")

WAITS = None
"""Instead of a reply: there is none yet."""

AS_IT_WAS = None
"""Instead of what is left."""

OK = Ok()
NULL = Value(None)
NOT_FOUND = Failure(Error.KEY_NOT_FOUND)
ALREADY_EXISTS = Failure(Error.KEY_ALREADY_EXISTS)
GET_OF_A_QUEUE = Failure(Error.WRONG_TYPE, "the key holds a queue, GET reads plain values")
EMPTY = Failure(Error.QUEUE_IS_EMPTY)


def wrong_type(name: str) -> Failure:
    """What a command for queues answers to a plain value."""
    return Failure(Error.WRONG_TYPE, f"the key holds a plain value, {name} needs a queue")


Outcome = tuple[Reply | None, Content | None]
"""The reply or WAITS; and what is left, with the milliseconds until an expiry, or AS_IT_WAS."""


def _either(gone: Outcome, there: Outcome) -> dict[str, Outcome]:
    return {kind: gone if kind in _GONE else there for kind in KINDS}


def _of_queues(name: str, gone: Outcome, queue: Outcome, emptied: Outcome) -> dict[str, Outcome]:
    plain = (wrong_type(name), AS_IT_WAS)
    return {**dict.fromkeys(_GONE, gone), "plain": plain, "expiring": plain, "queue": queue, "emptied": emptied}


def _queue(*values: bytes) -> Content:
    return {b"k": ("queue", *values)}


_NEW: Content = {b"k": ("value", b"v", None)}

CASES: dict[str, dict[str, Outcome]] = {
    "SET k v": dict.fromkeys(KINDS, (OK, _NEW)),
    "SET k v EX 2": dict.fromkeys(KINDS, (OK, {b"k": ("value", b"v", 2000)})),
    "SET k v NX": _either((OK, _NEW), (ALREADY_EXISTS, AS_IT_WAS)),
    "SET k v XX": _either((NOT_FOUND, AS_IT_WAS), (OK, _NEW)),
    "GET k": {
        **_either((NOT_FOUND, AS_IT_WAS), (Value(b"old"), AS_IT_WAS)),
        "queue": (GET_OF_A_QUEUE, AS_IT_WAS),
        "emptied": (GET_OF_A_QUEUE, AS_IT_WAS),
    },
    "DELETE k": _either((NOT_FOUND, AS_IT_WAS), (Integer(1), {})),
    "DELETE k k x k": _either((NOT_FOUND, AS_IT_WAS), (Integer(1), {})),
    "EXISTS k": _either((Integer(0), AS_IT_WAS), (Integer(1), AS_IT_WAS)),
    "EXISTS k x k": _either((Integer(0), AS_IT_WAS), (Integer(2), AS_IT_WAS)),
    "QPUSH k a b": _of_queues(
        "QPUSH",
        gone=(Ok(length=2), _queue(b"a", b"b")),
        queue=(Ok(length=5), _queue(b"first", b"mid", b"last", b"a", b"b")),
        emptied=(Ok(length=2), _queue(b"a", b"b")),
    ),
    "QPOP k": _of_queues(
        "QPOP",
        gone=(NULL, AS_IT_WAS),
        queue=(Value(b"last"), _queue(b"first", b"mid")),
        emptied=(EMPTY, AS_IT_WAS),
    ),
    "BQPOP k": _of_queues(
        "BQPOP",
        gone=(WAITS, AS_IT_WAS),
        queue=(Value(b"first"), _queue(b"mid", b"last")),
        emptied=(WAITS, AS_IT_WAS),
    ),
    "BQPOP k 0": _of_queues(
        "BQPOP",
        gone=(NULL, AS_IT_WAS),
        queue=(Value(b"first"), _queue(b"mid", b"last")),
        emptied=(NULL, AS_IT_WAS),
    ),
    "QLEN k": _of_queues(
        "QLEN",
        gone=(Integer(0), AS_IT_WAS),
        queue=(Integer(3), AS_IT_WAS),
        emptied=(Integer(0), AS_IT_WAS),
    ),
    "TTL k": {
        **_either((Integer(-2), AS_IT_WAS), (Integer(-1), AS_IT_WAS)),
        "expiring": (Integer(2), AS_IT_WAS),
    },
    "PING": dict.fromkeys(KINDS, (Value(b"PONG"), AS_IT_WAS)),
}
