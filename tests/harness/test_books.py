"""The books of the kill tests find what they are there to find."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.harness.books import SLACK_S, Batch, Key, Queue


@pytest.fixture
def key() -> Key:
    return Key("key")


@pytest.fixture
def queue() -> Queue:
    return Queue("queue")


def read(key: Key, found: str | None) -> None:
    key.read(found, key.floor, time.monotonic())


def write(key: Key, value: str | None, life_s: float = float("inf")) -> None:
    key.acknowledge(key.send(value, life_s))


def push(queue: Queue, *values: str) -> None:
    queue.acknowledge(queue.send(list(values)))


def test_an_unknown_write_may_have_happened_or_not(key: Key) -> None:
    """I3"""
    write(key, "a")
    key.send("b")
    key.crash()
    read(key, "a")
    read(key, "b")


def test_a_lost_write_is_found(key: Key) -> None:
    """I1"""
    write(key, "a")
    write(key, "b")
    with pytest.raises(AssertionError, match="key shows a"):
        read(key, "a")


def test_a_lost_delete_is_found(key: Key) -> None:
    """I1"""
    write(key, "a")
    write(key, None)
    with pytest.raises(AssertionError, match="key shows a"):
        read(key, "a")


def test_a_value_nobody_sent_is_found(key: Key) -> None:
    """I4"""
    with pytest.raises(AssertionError, match="key shows a"):
        read(key, "a")


def test_a_read_that_un_happens_is_found(key: Key) -> None:
    """I5: the write was never answered, but somebody has seen its value."""
    write(key, "a")
    key.send("b")
    read(key, "b")
    key.crash()
    with pytest.raises(AssertionError, match="key shows a"):
        read(key, "a")


def test_a_key_that_expires_too_early_is_found(key: Key) -> None:
    write(key, "a", 60)
    with pytest.raises(AssertionError, match="key shows nothing"):
        read(key, None)


def test_a_key_that_outlives_its_expiry_is_found(key: Key) -> None:
    write(key, "a", -SLACK_S - 0.001)
    with pytest.raises(AssertionError, match="key shows a"):
        read(key, "a")


def test_an_expired_key_that_comes_back_is_found(key: Key) -> None:
    """Around the deadline both is right, but not one after the other."""
    write(key, "a", 0)
    read(key, "a")
    read(key, None)
    with pytest.raises(AssertionError, match="key shows a"):
        read(key, "a")


def test_a_refused_write_that_happened_is_found(key: Key) -> None:
    key.send("a").refused = True
    with pytest.raises(AssertionError, match="key shows a"):
        read(key, "a")


def lost(queue: Queue) -> None:
    push(queue, "a")
    queue.check([])


def invented(queue: Queue) -> None:
    queue.check(["a"])


def delivered_twice(queue: Queue) -> None:
    push(queue, "a")
    queue.deliver("a", last=True, sent_s=time.monotonic())
    queue.deliver("a", last=True, sent_s=time.monotonic())


def delivered_and_left(queue: Queue) -> None:
    push(queue, "a")
    queue.deliver("a", last=True, sent_s=time.monotonic())
    queue.check(["a"])


def half_a_push(queue: Queue) -> None:
    queue.send(["a", "b"])
    queue.check(["a"])


def a_push_torn(queue: Queue) -> None:
    queue.send(["a", "b"])
    queue.send(["c"])
    queue.check(["a", "c", "b"])


def out_of_order(queue: Queue) -> None:
    push(queue, "a")
    push(queue, "b")
    queue.check(["b", "a"])


def last_taken_first(queue: Queue) -> None:
    push(queue, "a")
    push(queue, "b")
    queue.deliver("b", last=False, sent_s=time.monotonic())
    queue.check(["a"])


def first_taken_last(queue: Queue) -> None:
    push(queue, "a")
    push(queue, "b")
    queue.deliver("a", last=True, sent_s=time.monotonic())
    queue.check(["b"])


def refused_and_there(queue: Queue) -> None:
    queue.refuse(queue.send(["a"]))
    queue.check(["a"])


@pytest.mark.parametrize(
    ("go_wrong", "message"),
    [
        (lost, "lost"),
        (invented, "never pushed"),
        (delivered_twice, "delivered twice"),
        (delivered_and_left, "delivered or queued twice"),
        (half_a_push, "lost"),
        (a_push_torn, "torn"),
        (out_of_order, "was pushed before"),
        (last_taken_first, "taken before"),
        (first_taken_last, "taken before"),
        (refused_and_there, "never pushed"),
    ],
)
def test_a_queue_that_goes_wrong_is_found(queue: Queue, go_wrong: Callable[[Queue], None], message: str) -> None:
    """I1, I2, I4, I6"""
    with pytest.raises(AssertionError, match=message):
        go_wrong(queue)


def test_an_unknown_pop_excuses_one_missing_value_and_an_unknown_push_may_be_whole_or_not_there(queue: Queue) -> None:
    """I3, I6"""
    push(queue, "a", "b")
    queue.send(["c", "d"])
    queue.send(["e"])
    queue.unknown_pops = 1
    queue.crash()
    queue.check(["b", "c", "d"])


def found_after_a_crash(key: Key, value: str | None) -> None:
    key.crash()
    read(key, value)
    key.settle(value)


def test_of_an_unknown_unit_all_may_have_happened_or_nothing(key: Key, queue: Queue) -> None:
    """I2"""
    for value, left in (("a", ["b"]), (None, [])):
        unit = Batch([key.send("a"), queue.send(["b"])], atomic=True)
        found_after_a_crash(key, value)
        queue.check(left)
        unit.check()
        queue = Queue("queue")
        found_after_a_crash(key, value)
        write(key, None)


def test_half_a_unit_is_found(key: Key, queue: Queue) -> None:
    """I2"""
    unit = Batch([key.send("a"), queue.send(["b"])], atomic=True)
    found_after_a_crash(key, "a")
    queue.check([])
    with pytest.raises(AssertionError, match="half a unit"):
        unit.check()


def test_half_a_unit_on_one_key_is_found(key: Key) -> None:
    """I2"""
    unit = Batch([key.send("a"), key.send("b")], atomic=True)
    found_after_a_crash(key, "a")
    with pytest.raises(AssertionError, match="half a unit"):
        unit.check()


def test_of_an_unknown_pipeline_the_first_part_may_have_happened(key: Key, queue: Queue) -> None:
    """I2"""
    pipeline = Batch([key.send("a"), key.send("b"), queue.send(["c"])], atomic=False)
    found_after_a_crash(key, "a")
    queue.check([])
    pipeline.check()


def test_the_second_part_of_a_pipeline_without_the_first_is_found(key: Key, queue: Queue) -> None:
    """I2"""
    pipeline = Batch([key.send("a"), queue.send(["b"])], atomic=False)
    found_after_a_crash(key, None)
    queue.check(["b"])
    with pytest.raises(AssertionError, match="a later part"):
        pipeline.check()


def test_a_push_that_is_not_there_is_no_proof_while_an_unknown_pop_may_have_it(key: Key, queue: Queue) -> None:
    """I2"""
    unit = Batch([key.send("a"), queue.send(["b"])], atomic=True)
    queue.unknown_pops = 1
    found_after_a_crash(key, "a")
    queue.check([])
    unit.check()
