from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.calls import Command
from engine.commands.table import parse
from engine.limits import Limits
from engine.replies import Error, Failure, Integer, Reply, Value
from engine.store import ops
from engine.store.ops import BadOp, Op
from engine.store.queues import PUSH_BYTES_MAX
from engine.store.state import State
from engine.store.store import BIG_QUEUE_LENGTH, ITEM_RECORD_BYTES
from tests.conformance.cases import AS_IT_WAS, OK
from tests.conformance.table import CASES
from tests.harness.effort import many
from tests.harness.model import Content

NOW_MS = 1_000_000
LIMITS = Limits()


def command_of(line: str) -> Command:
    return parse(line.encode().split(), LIMITS)


def do(state: State, line: str, now_ms: int = NOW_MS) -> Reply | None:
    """Decides and applies."""
    effects, reply = state.decide(command_of(line), now_ms)
    for op in effects:
        state.apply(op)
    return reply


def missing() -> State:
    return State()


def plain() -> State:
    state = State()
    do(state, "SET k old")
    return state


def expiring() -> State:
    """Holds a key that is still there, for 1.5 seconds."""
    state = State()
    do(state, "SET k old PX 1500")
    return state


def expired() -> State:
    """Holds a key whose time is up at this very instant, not swept yet."""
    state = State()
    do(state, "SET k old PX 1500", NOW_MS - 1500)
    return state


def queue() -> State:
    state = State()
    do(state, "QPUSH k first mid last")
    return state


def emptied() -> State:
    state = State()
    do(state, "QPUSH k only")
    do(state, "QPOP k")
    return state


KINDS = (missing, plain, expiring, expired, queue, emptied)


def dumped(content: Content) -> tuple[object, ...]:
    """How a state dumps it."""
    dump: list[tuple[object, ...]] = []
    for key, (kind, *rest) in content.items():
        if kind == "queue":
            dump.append((kind, key, tuple(rest)))
        else:
            value, ttl_ms = rest
            dump.append((kind, key, value, NOW_MS + ttl_ms if isinstance(ttl_ms, int) else None))
    return tuple(dump)


@pytest.mark.parametrize(
    ("line", "kind"),
    [(line, kind) for line in CASES for kind in KINDS],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_command_meets_each_kind_of_key(line: str, kind: Callable[[], State]) -> None:
    state = kind()
    before = tuple(state.dump())
    reply, after = CASES[line][kind.__name__]
    assert do(state, line) == reply
    assert tuple(state.dump()) == (before if after is AS_IT_WAS else dumped(after))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("line", CASES)
def test_deciding_changes_nothing_and_applying_asks_nothing(line: str, kind: Callable[[], State]) -> None:
    state = kind()
    before = list(state.dump()), state.memory_bytes
    first = state.decide(command_of(line), NOW_MS)
    assert state.decide(command_of(line), NOW_MS) == first
    assert (list(state.dump()), state.memory_bytes) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("line", CASES)
def test_when_all_is_gone_the_memory_is_zero(line: str, kind: Callable[[], State]) -> None:
    state = kind()
    do(state, line)
    for op in [(ops.REMOVE, entry[1]) for entry in state.dump()]:
        state.apply(op)
    assert state.memory_bytes == 0
    assert state.queue_count == 0
    assert len(state) == 0
    assert state.next_deadline_ms is None


def test_the_memory_is_zero_after_any_commands_in_any_order() -> None:
    rng = random.Random(3)
    state = State()
    lines = [line.replace("k", f"key{n}") for line in CASES for n in range(3)]
    for step in range(3_000):
        do(state, rng.choice(lines), NOW_MS + step * 10)
        if step % 50 == 0:
            for key in state.expired(NOW_MS + step * 10, 2, 100):
                state.apply((ops.EXPIRE, (key,)))
    assert state.memory_bytes > 0
    do(state, "DELETE key0 key1 key2", NOW_MS)
    remaining = tuple(entry[1] for entry in state.dump())
    if remaining:
        state.apply((ops.EXPIRE, remaining))
    assert (state.memory_bytes, state.queue_count, len(state)) == (0, 0, 0)


def test_a_set_drops_the_older_expiry() -> None:
    state = expiring()
    do(state, "SET k new")
    assert state.next_deadline_ms is None
    assert do(state, "TTL k", NOW_MS + 10**9) == Integer(-1)


@pytest.mark.parametrize(
    ("left_ms", "seconds"), [(1, 1), (999, 1), (1000, 1), (1001, 2), (60_000, 60), (0, -2), (-1, -2)]
)
def test_the_seconds_left_are_rounded_up(left_ms: int, seconds: int) -> None:
    state = State()
    do(state, "SET k v PX 100000")
    assert do(state, "TTL k", NOW_MS + 100_000 - left_ms) == Integer(seconds)


@pytest.mark.parametrize("line", ["GET k", "EXISTS k", "DELETE k", "TTL k", "QPOP k", "QLEN k"])
def test_a_key_is_there_until_the_instant_before_and_gone_at_the_instant(line: str) -> None:
    state, empty = State(), State()
    do(state, "SET k v PX 500")
    assert state.decide(command_of(line), NOW_MS + 500) == empty.decide(command_of(line), NOW_MS + 500)
    assert state.decide(command_of(line), NOW_MS + 499) != empty.decide(command_of(line), NOW_MS + 499)


def test_expired_keys_come_longest_expired_first_and_no_more_than_asked_for() -> None:
    """D5"""
    state = State()
    for number, ms in enumerate([300, 100, 200, 100]):
        do(state, f"SET k{number} v PX {ms}")
    assert state.next_deadline_ms == NOW_MS + 100
    assert state.expired(NOW_MS + 99, 10, 100) == ()
    assert state.expired(NOW_MS + 100, 10, 100) == (b"k1", b"k3")
    assert state.expired(NOW_MS + 500, 3, 100) == (b"k1", b"k3", b"k2")
    assert state.expired(NOW_MS + 500, 3, 3) == (b"k1", b"k3"), "long keys make short slices"


class TestMemoryCap:
    CAP = 10_000

    def full(self) -> State:
        """Leaves room for less than one more key."""
        state = State(self.CAP)
        do(state, "QPUSH q " + " ".join(["x" * 100] * 20))
        while do(state, f"SET k{len(state)} {'v' * 100}") == OK:
            pass
        return state

    def test_writes_that_grow_are_refused(self) -> None:
        state = self.full()
        before = list(state.dump())
        full = Failure(Error.STORAGE_FULL, "the memory cap of 10000 bytes is reached")
        assert do(state, "SET new " + "v" * 300) == full
        assert do(state, "QPUSH q " + "x" * 300) == full
        assert do(state, "QPUSH new " + "x" * 300) == full
        assert do(state, "SET k1 " + "v" * 500) == full
        assert list(state.dump()) == before
        assert state.memory_bytes <= self.CAP

    def test_writes_that_do_not_grow_go_on(self) -> None:
        state = self.full()
        assert do(state, "SET k1 " + "w" * 100) == OK
        assert do(state, "SET k1 w") == OK

    def test_deletes_and_pops_go_on_and_make_room(self) -> None:
        """B4"""
        state = self.full()
        assert do(state, "QPOP q") == Value(b"x" * 100)
        assert do(state, "BQPOP q") == Value(b"x" * 100)
        assert do(state, "DELETE k1 k2 k3") == Integer(3)
        assert do(state, "SET new " + "v" * 300) == OK

    def test_a_value_that_comes_back_is_never_refused(self) -> None:
        """E5"""
        state = self.full()
        do(state, "QPOP q")
        do(state, f"SET small {'v' * 10}")
        state.apply((ops.RETURN_LAST, b"q", b"x" * 100))
        assert do(state, "QLEN q") == Integer(20)

    def test_a_cap_above_the_need_refuses_nothing(self) -> None:
        probe = State()
        do(probe, "SET k v EX 5")
        assert do(State(probe.memory_bytes), "SET k v EX 5") == OK
        assert do(State(probe.memory_bytes - 1), "SET k v EX 5") != OK


def test_a_big_queue_that_is_removed_is_freed_in_slices() -> None:
    state = State()
    for _ in range(3):
        state.apply((ops.PUSH, b"q", (b"v",) * 10_000))
    do(state, "DELETE q")
    assert state.memory_bytes == 0
    slices = 0
    while state.has_garbage:
        state.free_garbage(7_000)
        slices += 1
    assert slices == 5


def test_a_small_queue_that_is_removed_is_just_gone() -> None:
    state = State()
    state.apply((ops.PUSH, b"q", (b"v",) * BIG_QUEUE_LENGTH))
    do(state, "SET q v")
    assert not state.has_garbage
    state.free_garbage(1)


def test_a_returned_value_is_where_it_was_taken_from() -> None:
    """E5"""
    state = queue()
    for line, code in (("QPOP k", ops.RETURN_LAST), ("BQPOP k", ops.RETURN_FIRST)):
        before = list(state.dump()), state.memory_bytes
        reply = do(state, line)
        assert isinstance(reply, Value)
        state.apply((code, b"k", reply.value))
        assert (list(state.dump()), state.memory_bytes) == before


@pytest.mark.parametrize(
    ("op", "kinds"),
    [
        ((ops.REMOVE, b"k"), (missing,)),
        ((ops.EXPIRE, (b"k",)), (missing,)),
        ((ops.EXPIRE, (b"k", b"k")), (plain,)),
        ((ops.PUSH, b"k", (b"v",)), (plain, expiring, expired)),
        ((ops.POP_FIRST, b"k"), (missing, plain, expiring, expired, emptied)),
        ((ops.POP_LAST, b"k"), (missing, plain, expiring, expired, emptied)),
        ((ops.RETURN_FIRST, b"k", b"v"), (missing, plain, expiring, expired)),
        ((ops.RETURN_LAST, b"k", b"v"), (missing, plain, expiring, expired)),
        ((ops.DEADLINE, b"k", None), (missing, emptied)),
        ((ops.DEADLINE, b"k", NOW_MS), (missing, emptied)),
    ],
)
def test_an_op_that_does_not_fit_the_state_is_bad(op: Op, kinds: tuple[Callable[[], State], ...]) -> None:
    """A12"""
    for kind in kinds:
        with pytest.raises(BadOp):
            kind().apply(op)


def test_the_dump_does_not_depend_on_the_order_of_writing() -> None:
    """I7"""
    lines = ["SET b 1", "SET a 2 PX 50", "QPUSH c x y", "SET \xe9 3"]
    one, other = State(), State()
    for line in lines:
        do(one, line)
    for line in reversed(lines):
        do(other, line)
    assert list(one.dump()) == list(other.dump())
    assert len(one) == 4
    assert one.queue_count == 1


def replayed(ops_: Iterable[Op]) -> State:
    """The state that these ops make of an empty one."""
    state = State()
    for op in ops_:
        state.apply(ops.check(op))
    return state


def figures(state: State) -> tuple[object, ...]:
    """Everything that shows of a state."""
    return (
        list(state.dump()),
        len(state),
        state.queue_count,
        state.memory_bytes,
        state.live_bytes,
        state.next_deadline_ms,
    )


def state_of_all_kinds() -> State:
    state = State()
    for number in range(40):
        do(state, f"SET plain{number} v{'v' * number * 20}")
        do(state, f"SET expiring{number} v{'v' * number} PX {1000 - number}")
        do(state, f"QPUSH queue{number} " + " ".join("w" * length for length in range(1, number + 2)))
        do(state, f"QPUSH emptied{number} once")
        do(state, f"QPOP emptied{number}")
    return state


@pytest.mark.parametrize("kind", [*KINDS, state_of_all_kinds])
def test_the_ops_of_a_snapshot_make_an_equal_state(kind: Callable[[], State]) -> None:
    """I7: an empty queue is there afterwards too."""
    assert figures(replayed(kind().snapshot_ops())) == figures(kind())


def test_the_ops_of_a_snapshot_do_not_depend_on_the_order_of_writing() -> None:
    """I7"""
    snapshot = list(state_of_all_kinds().snapshot_ops())
    assert list(replayed(reversed(snapshot)).snapshot_ops()) == snapshot


EMPTY_MAX = PUSH_BYTES_MAX // ITEM_RECORD_BYTES
"""Empty values of one op."""


@pytest.mark.parametrize(
    ("values", "lengths"),
    [
        ((b"",) * EMPTY_MAX, [EMPTY_MAX]),
        ((b"",) * (2 * EMPTY_MAX + 1), [EMPTY_MAX, EMPTY_MAX, 1]),
        ((bytes(PUSH_BYTES_MAX // 2 - ITEM_RECORD_BYTES),) * 3, [2, 1]),
        ((b"", bytes(PUSH_BYTES_MAX), bytes(PUSH_BYTES_MAX + 1), b""), [1, 1, 1, 1]),
    ],
    ids=["at the limit", "many", "large", "larger than the limit"],
)
def test_a_long_queue_is_several_ops_of_a_snapshot(values: tuple[bytes, ...], lengths: list[int]) -> None:
    state = replayed([(ops.PUSH, b"q", values)])
    snapshot = list(state.snapshot_ops())
    assert [len(op[2]) for op in snapshot] == lengths
    assert figures(replayed(snapshot)) == figures(state)


def test_the_live_bytes_are_those_of_the_records_of_a_snapshot() -> None:
    state = state_of_all_kinds()
    assert state.live_bytes == pytest.approx(sum(len(ops.pack(op)) for op in state.snapshot_ops()), rel=0.02)
    for key in [key for _, key, *_ in state.dump()]:
        state.apply((ops.REMOVE, key))
    assert state.live_bytes == 0


def test_the_live_bytes_of_short_values_under_a_long_key_are_those_of_a_snapshot_as_well() -> None:
    """C8: else the disk bound is missed, and one checkpoint follows the other."""
    state = replayed([(ops.PUSH, b"k" * 4096, (b"x",) * 400_000)])
    assert state.live_bytes == pytest.approx(sum(len(ops.pack(op)) for op in state.snapshot_ops()), rel=0.02)


# Replay

KEYS = st.sampled_from([b"", b"a", b"b", b"key"])
VALUES = st.binary(max_size=3)
DEADLINES_MS = st.none() | st.sampled_from([0, NOW_MS, 2**64 - 1])
FITTING = st.one_of(
    st.tuples(st.just(ops.PUT), KEYS, VALUES, DEADLINES_MS),
    st.tuples(st.just(ops.PUT), KEYS, VALUES, st.none()),
    st.tuples(st.just(ops.PUSH), KEYS, st.lists(VALUES).map(tuple)),
    st.tuples(st.sampled_from([ops.REMOVE, ops.POP_FIRST, ops.POP_LAST]), KEYS),
    st.tuples(st.sampled_from([ops.RETURN_FIRST, ops.RETURN_LAST]), KEYS, VALUES),
    st.tuples(st.just(ops.EXPIRE), st.lists(KEYS, max_size=2).map(tuple)),
    st.tuples(st.just(ops.DEADLINE), KEYS, DEADLINES_MS),
)
ALMOST = [
    *((code, b"a", b"1", None) for code in (True, 1.0, 0, 9, b"1", None)),
    *((ops.PUT, key, b"1", None) for key in ("a", 1, None, (b"a",))),
    *((ops.PUT, b"a", value, None) for value in ("1", 1, None, (b"1",))),
    *((ops.PUT, b"a", b"1", deadline_ms) for deadline_ms in (-1, 1.0, True, b"1", "1")),
    *((), (ops.PUT,), (ops.PUT, b"a", b"1"), (ops.PUT, b"a", b"1", None, None), (ops.PUSH, b"a", ("1",))),
]
ANY_RECORD = FITTING | FITTING | st.sampled_from(ALMOST)


def one_by_one(commits: list[list[Op]]) -> tuple[object, ...]:
    """What a state shows when each op is checked and applied; or where that is refused, and why."""
    state = State()
    for number, commit in enumerate(commits):
        for index, op in enumerate(commit):
            try:
                state.apply(ops.check(op))
            except BadOp as error:
                return number, index, str(error)
    return figures(state)


def at_once(commits: list[list[Op]]) -> tuple[object, ...]:
    """The same, by replay."""
    state = State()
    for number, commit in enumerate(commits):
        try:
            state.replay(commit)
        except BadOp as error:
            return number, error.index, str(error)
    return figures(state)


def only_those_that_fit(commits: list[list[Op]]) -> list[list[Op]]:
    """Leaves the ops out that do not fit the state, so that it becomes old."""
    state = State()
    fitting: list[list[Op]] = []
    for commit in commits:
        fitting.append([])
        for op in commit:
            with contextlib.suppress(BadOp):
                state.apply(ops.check(op))
                fitting[-1].append(op)
    return fitting


@settings(max_examples=many(300))
@given(commits=st.lists(st.lists(ANY_RECORD, max_size=20), max_size=8))
def test_replay_makes_the_state_that_its_ops_make_one_by_one(commits: list[list[Op]]) -> None:
    """I7, A12: and refuses the same record for the same reason."""
    assert at_once(commits) == one_by_one(commits)
    fitting = only_those_that_fit(commits)
    assert at_once(fitting) == one_by_one(fitting)


@pytest.mark.parametrize("record", ALMOST)
@pytest.mark.parametrize("key", [b"a", b"b"])
def test_replay_refuses_what_is_almost_an_op_and_says_which_it_was(key: bytes, record: Op) -> None:
    """A12: whether the key is there before or not."""
    commits = [[(ops.PUT, key, b"old", None)], [(ops.REMOVE, key), (ops.PUT, key, b"", None), record]]
    assert at_once(commits) == one_by_one(commits)
    assert at_once(commits)[:2] == (1, 2)


def test_replay_of_a_long_random_life_makes_the_same_state() -> None:
    """I7"""
    rng = random.Random(7)
    live, replayed_, commits = State(), State(), 0
    lines = [line.replace("k", f"key{n}") for line in CASES for n in range(3)]
    for step in range(5_000):
        now_ms = NOW_MS + step * 10
        effects, _ = live.decide(command_of(rng.choice(lines)), now_ms)
        expired = live.expired(now_ms, 2, 100) if not effects else ()
        effects = effects or (((ops.EXPIRE, expired),) if expired else ())
        for op in effects:
            live.apply(op)
        replayed_.replay(effects)
        commits += bool(effects)
    assert commits > 900
    assert figures(replayed_) == figures(live)
