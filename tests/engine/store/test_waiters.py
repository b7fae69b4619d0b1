from __future__ import annotations

import random
import tracemalloc

from engine.store import waiters as module
from engine.store.waiters import Waiter, Waiters


def test_claims_are_first_come_first_served_for_each_queue() -> None:
    waiters: Waiters[str] = Waiters()
    for owner in ("q1", "r1", "q2", "r2", "q3"):
        waiters.park(owner[:1].encode(), None, owner)
    assert [waiters.claim(b"q").owner for _ in range(3)] == ["q1", "q2", "q3"]
    assert b"q" not in waiters
    assert b"r" in waiters
    assert len(waiters) == 2


def test_one_who_leaves_from_the_middle_changes_nothing_for_the_others() -> None:
    waiters: Waiters[int] = Waiters()
    parked = [waiters.park(b"q", None, number) for number in range(5)]
    waiters.abandon(parked[2])
    waiters.abandon(parked[0])
    assert [waiters.claim(b"q").owner for _ in range(len(waiters))] == [1, 3, 4]


def test_those_whose_time_is_up_come_out_at_that_very_instant() -> None:
    """E7"""
    waiters: Waiters[str] = Waiters()
    waiters.park(b"q", 200, "late")
    waiters.park(b"r", 100, "early")
    waiters.park(b"q", None, "patient")
    waiters.park(b"q", 100, "early too")
    assert waiters.next_deadline_ms == 100
    assert list(waiters.due(99)) == []
    assert [waiter.owner for waiter in waiters.due(100)] == ["early", "early too"]
    assert waiters.next_deadline_ms == 200
    assert [waiter.owner for waiter in waiters.due(10**9)] == ["late"]
    assert waiters.next_deadline_ms is None
    assert waiters.claim(b"q").owner == "patient"


def test_a_claimed_waiter_has_no_deadline_left() -> None:
    """E7"""
    waiters: Waiters[int] = Waiters()
    waiters.park(b"q", 100, 1)
    waiters.claim(b"q")
    assert waiters.next_deadline_ms is None
    assert list(waiters.due(100)) == []


def test_draining_takes_everybody_out_in_order_of_arrival() -> None:
    """E8"""
    waiters: Waiters[int] = Waiters()
    for number in range(10):
        waiters.park(b"q%d" % (number % 2), 50 if number % 3 else None, number)
    assert [waiter.owner for waiter in waiters.drain()] == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert len(waiters) == 0
    assert waiters.next_deadline_ms is None


def test_the_line_keeps_its_order_whoever_leaves() -> None:
    rng = random.Random(7)
    waiters: Waiters[int] = Waiters()
    twin: dict[bytes, list[Waiter[int]]] = {b"q": [], b"r": []}
    for number in range(3_000):
        key = rng.choice([b"q", b"r"])
        line = twin[key]
        action = rng.random()
        if action < 0.5 or not line:
            line.append(waiters.park(key, rng.choice([None, number]), number))
        elif action < 0.7:
            assert waiters.claim(key) is line.pop(0)
        else:
            waiters.abandon(line.pop(rng.randrange(len(line))))
        assert len(waiters) == sum(map(len, twin.values()))


def test_a_hundred_thousand_who_come_and_leave_cost_nothing_afterwards() -> None:
    """E10"""
    waiters: Waiters[int] = Waiters()
    stayer = waiters.park(b"q", None, -1)

    def come_and_leave(count: int) -> None:
        for number in range(count):
            waiters.abandon(waiters.park(b"q%d" % (number % 7), number if number % 2 else None, number))
            waiters.abandon(waiters.park(b"q", number, number))

    def held_bytes() -> int:
        """What was allocated in calls of theirs and is there; the threads of the test runner allocate as well."""
        theirs = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, module.__file__, all_frames=True)])
        return sum(trace.size for trace in theirs.traces)

    come_and_leave(100)
    tracemalloc.start(10)
    try:
        come_and_leave(10)
        before_bytes = held_bytes()
        come_and_leave(5_000)
        after_bytes = held_bytes()
    finally:
        tracemalloc.stop()
    assert after_bytes - before_bytes < 2_000
    come_and_leave(45_000)
    assert list(waiters._lines) == [b"q"]
    assert not waiters._deadlines
    assert waiters.claim(b"q") is stayer


def test_claiming_is_as_quick_behind_a_hundred_thousand_who_left() -> None:
    """E9: a plain dict would look past every one of them, for each claim."""
    waiters: Waiters[int] = Waiters()
    parked = [waiters.park(b"q", None, number) for number in range(60_000)]
    for waiter in parked[:30_000]:
        waiters.abandon(waiter)
    for number in range(30_000, 60_000):  # seconds, if each claim took time in proportion to those who left
        assert waiters.claim(b"q").owner == number
