"""The words of the contract's table: what a command answers for every kind of key, and what it leaves.

The rows stand with the families (test_values.py, test_keys.py, test_queues.py, test_server.py); table.py puts them
together. The pure state is held against them, and so is each engine.
"""

from __future__ import annotations

from engine.replies import Error, Failure, Ok, Reply, Value
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


Case = dict[str, Outcome]
"""The outcome for each kind of key."""


def either(gone: Outcome, there: Outcome) -> Case:
    """A command that only asks whether the key is there."""
    return {kind: gone if kind in _GONE else there for kind in KINDS}


def of_queues(name: str, gone: Outcome, queue: Outcome, emptied: Outcome) -> Case:
    """A command that needs a queue."""
    plain = (wrong_type(name), AS_IT_WAS)
    return {**dict.fromkeys(_GONE, gone), "plain": plain, "expiring": plain, "queue": queue, "emptied": emptied}


def queue_of(*values: bytes) -> Content:
    """`k` as a queue."""
    return {b"k": ("queue", *values)}


NEW: Content = {b"k": ("value", b"v", None)}
