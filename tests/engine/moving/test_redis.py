"""Moving out of a real Redis and into one: exact, resumable without a value doubled, and what goes wrong is said."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.commands.words import TTL_MS_MAX
from engine.moving.directory import items_of
from engine.moving.items import InUse, Item, MoveError, Piece, Plain
from engine.moving.masters import Master, fronts_in, open_masters
from engine.moving.move import Moved, move
from engine.moving.redis import RedisDestination, RedisSource
from engine.moving.scan import RECENT_KEYS_MAX, scan
from engine.moving.tally import Difference
from engine.redis.endpoint import Address, parse_endpoint
from engine.redis.format import IMPORT_KEY, is_mark, receipts_key
from engine.redis.node import Simple
from engine.redis.slots import slot_of
from engine.store import ops
from engine.store.ops import Op
from engine.store.state import State
from tests.harness.front import start_front
from tests.harness.moving import DAY_MS, LONG_QUEUE, Items, everything, silent, state_of
from tests.harness.redis import RedisCluster, RedisNode

NOW_MS = time.time_ns() // 1_000_000
"""Redis has a clock of its own, so what is to expire has to do so after the tests."""

EVERYTHING = everything(NOW_MS)


@pytest.fixture(scope="module")
def redis_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNode]:
    with RedisNode(tmp_path_factory.mktemp("redis")) as node:
        yield node


@pytest.fixture
def one(redis_node: RedisNode) -> RedisNode:
    """One Redis, no cluster, without data."""
    redis_node.do("FLUSHALL")
    return redis_node


class Clock:
    """The wall clock, which tests may put forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


async def put_into(url: str, source: Items, clock: Callable[[], int] | None = None) -> Moved:
    """Moves a source in; what is raised comes out of its nursery."""
    try:
        async with open_masters(parse_endpoint(url)) as masters:
            return await move(source, RedisDestination(masters, clock or Clock()), silent, silent)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def take_from(url: str, clock: Callable[[], int] | None = None, *, skip_foreign: bool = False) -> list[Item]:
    """Everything there is."""
    found: list[Item] = []
    try:
        async with open_masters(parse_endpoint(url)) as masters:
            source = await RedisSource.open(masters, clock or Clock(), skip_foreign=skip_foreign)
            async for batch in source.batches():
                found += batch
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return found


def dump_of(items: Sequence[Item]) -> list[tuple[Any, ...]]:
    """The state that items make, in whatever order they came."""
    state = State()
    for item in items:
        state.apply((ops.PUT, *item) if isinstance(item, Plain) else (ops.PUSH, item.key, item.values))
    return list(state.dump())


def stop_at(batch: int) -> Callable[[int], None]:
    def stop(number: int) -> None:
        if number == batch:
            raise MoveError("stop")

    return stop


def doing_at(batch: int, node: RedisNode, *words: str | int) -> Callable[[int], None]:
    def do(number: int) -> None:
        if number == batch:
            node.do(*words)

    return do


# There and back


async def test_everything_goes_into_a_cluster_and_comes_back_as_it_was(redis_cluster: RedisCluster) -> None:
    moved = await put_into(redis_cluster.url, Items(state_of(EVERYTHING)))
    assert (moved.differences, moved.expired, moved.resumed_at) == ([], 0, 0)
    assert (moved.tally.keys, moved.tally.queues.count) == (778, 75)
    found = await take_from(redis_cluster.url)
    assert dump_of(found) == list(state_of(EVERYTHING).dump())
    assert min(node.do("DBSIZE") for node in redis_cluster.masters) > 200
    assert redis_cluster.do("EXISTS", IMPORT_KEY) == 0
    pieces = [item for item in found if isinstance(item, Piece) and item.key == b"long"]
    assert [piece.offset for piece in pieces] == [0, *range(16, len(LONG_QUEUE), 512)]


async def test_everything_goes_into_one_redis_and_comes_back_as_it_was(one: RedisNode) -> None:
    moved = await put_into(one.url, Items(state_of(EVERYTHING)))
    assert moved.differences == []
    assert dump_of(await take_from(one.url)) == list(state_of(EVERYTHING).dump())


async def test_it_lies_there_as_the_fronts_have_it(one: RedisNode) -> None:
    await put_into(one.url, Items(state_of(EVERYTHING)))
    assert one.do("GET", "key 1") == b"value 1"
    assert one.do("PEXPIRETIME", "session 1") == NOW_MS + DAY_MS + 7_001
    mark, *values = one.do("LRANGE", "long", 0, -1)
    assert is_mark(mark)
    assert tuple(values) == LONG_QUEUE
    marks = [one.do("LINDEX", key, 0) for key in ("long", "one", "empty queue")]
    assert len(set(marks)) == 3
    assert one.do("LLEN", "empty queue") == 1


# Resuming


async def test_what_was_interrupted_goes_on_where_it_was(redis_cluster: RedisCluster) -> None:
    state = state_of(EVERYTHING)
    with pytest.raises(MoveError, match="stop"):
        await put_into(redis_cluster.url, Items(state, before=stop_at(3)))
    assert redis_cluster.do("GET", IMPORT_KEY) == b"300 store of a test at record 1"
    with pytest.raises(MoveError, match="holds an import that was not finished"):
        await take_from(redis_cluster.url)
    moved = await put_into(redis_cluster.url, Items(state))
    assert (moved.differences, moved.resumed_at) == ([], 300)
    assert dump_of(await take_from(redis_cluster.url)) == list(state.dump())


@pytest.mark.parametrize("noted", [0, 1, 2, 3])
async def test_values_that_are_there_already_are_not_doubled(one: RedisNode, noted: int) -> None:
    """The note may be behind what was written, never before it."""
    state = state_of([(ops.PUSH, b"q", LONG_QUEUE)])
    source = Items(state, size=1)
    assert len(source.items) == 3
    for done in range(noted, 4):
        one.do("FLUSHALL")
        with pytest.raises(MoveError, match="stop"):
            await put_into(one.url, Items(state, size=1, at_end=raise_stop))
        one.do("LTRIM", "q", 0, 1000 * done)
        one.do("SET", IMPORT_KEY, b"%d %b" % (noted, source.identity.encode()))
        moved = await put_into(one.url, source)
        assert moved.differences == [], (noted, done)
        assert tuple(one.do("LRANGE", "q", 1, -1)) == LONG_QUEUE


def raise_stop() -> None:
    raise MoveError("stop")


async def test_a_piece_of_which_a_part_is_there_is_completed(one: RedisNode) -> None:
    state = state_of([(ops.PUSH, b"q", LONG_QUEUE)])
    with pytest.raises(MoveError, match="stop"):
        await put_into(one.url, Items(state, before=stop_at(0)))
    one.do("RPUSH", "q", "holdfast:queue:" + "0" * 32, *LONG_QUEUE[:1_234])
    assert (await put_into(one.url, Items(state))).differences == []
    assert tuple(one.do("LRANGE", "q", 1, -1)) == LONG_QUEUE


async def test_a_source_without_order_is_written_once_more_from_its_beginning(one: RedisNode) -> None:
    state = state_of(EVERYTHING)
    first, second = Items(state, before=stop_at(3)), Items(state)
    first.is_repeatable = second.is_repeatable = False
    with pytest.raises(MoveError, match="stop"):
        await put_into(one.url, first)
    second.items = list(items_of(state))
    queues = [item for item in second.items if isinstance(item, Piece)]
    second.items = [*queues, *(item for item in second.items if isinstance(item, Plain))]
    moved = await put_into(one.url, second)
    assert (moved.differences, moved.resumed_at) == ([], 0)
    assert dump_of(await take_from(one.url)) == list(state.dump())


# What is refused


async def test_only_an_empty_redis_or_an_unfinished_move_from_the_same_source_is_moved_into(one: RedisNode) -> None:
    one.do("SET", "a", "1")
    with pytest.raises(MoveError, match=r"is not empty; keys: 1, one of them 'a'"):
        await put_into(one.url, Items(state_of(EVERYTHING)))
    assert one.do("KEYS", "*") == [b"a"]
    one.do("FLUSHALL")
    one.do("SET", IMPORT_KEY, "5 store of others")
    with pytest.raises(
        MoveError, match="from another source that was not finished: store of others, not store of a test"
    ):
        await put_into(one.url, Items(state_of(EVERYTHING)))
    assert one.do("GET", IMPORT_KEY) == b"5 store of others"


async def test_nothing_is_moved_out_of_a_redis_or_into_it_while_fronts_are_connected(
    redis_cluster: RedisCluster,
) -> None:
    """They may write what is then missing, or too much."""
    async with trio.open_nursery() as nursery:
        fronts = [await start_front(nursery, redis_cluster.url) for _ in range(2)]
        for move_it in (take_from(redis_cluster.url), put_into(redis_cluster.url, Items(state_of(EVERYTHING)))):
            with pytest.raises(InUse, match=r"is in use by 2 fronts, one of them at 127\.0\.0\.1:[0-9]+: nobody may"):
                await move_it
        for front in fronts:
            front.close()
    assert (await put_into(redis_cluster.url, Items(state_of(EVERYTHING)))).differences == []


async def test_a_front_that_comes_while_everything_is_read_is_noticed_at_the_end(redis_cluster: RedisCluster) -> None:
    await put_into(redis_cluster.url, Items(state_of(EVERYTHING)))
    async with trio.open_nursery() as nursery, open_masters(parse_endpoint(redis_cluster.url)) as masters:
        source = await RedisSource.open(masters, Clock(), skip_foreign=False)
        batches = source.batches()
        assert await anext(batches)
        front = await start_front(nursery, redis_cluster.url)
        with pytest.raises(InUse, match="in use by a front at "):
            async for _ in batches:
                pass
        front.close()


async def test_a_front_on_another_database_is_none_on_this_one(nursery: trio.Nursery, one: RedisNode) -> None:
    front = await start_front(nursery, f"{one.url}/1")
    assert (await put_into(one.url, Items(state_of(EVERYTHING)))).differences == []
    assert await take_from(one.url) != []
    with pytest.raises(InUse):
        await take_from(f"{one.url}/1")
    front.close()


def test_only_a_connection_by_the_very_name_is_a_fronts() -> None:
    line = "id=3 addr=10.0.0.1:{} fd=8 name={} age=1 db=0 cmd=get user=holdfast lib-name={} lib-ver=6"
    others = [("", "redis-py"), ("holdfast-backup", "redis-py"), ("my-holdfast", ""), ("", "holdfast")]
    names = [("holdfast", "coredis"), *others, ("holdfast", "coredis")]
    clients = "\n".join(line.format(port, *both) for port, both in enumerate(names))
    assert fronts_in(clients.encode(), 0) == [b"10.0.0.1:0", b"10.0.0.1:5"]
    assert fronts_in(clients.encode(), 1) == []


async def test_whoever_may_not_see_who_is_connected_moves_all_the_same(nursery: trio.Nursery, one: RedisNode) -> None:
    one.do("ACL", "SETUSER", "mover", "reset", "on", ">pw", "~*", "&*", "+@all", "-client|list")
    front = await start_front(nursery, one.url)
    try:
        assert await take_from(one.url.replace("//", "//mover:pw@")) == []
    finally:
        one.do("ACL", "DELUSER", "mover")
    front.close()


async def test_receipts_of_fronts_are_no_data(redis_cluster: RedisCluster) -> None:
    key = receipts_key(slot_of(b"q"), b"front")
    redis_cluster.do("HSET", key, "1", "<mark value")
    assert await take_from(redis_cluster.url) == []
    moved = await put_into(redis_cluster.url, Items(state_of(EVERYTHING)))
    assert (moved.differences, moved.tally.keys) == ([], 778)
    assert redis_cluster.do("HLEN", key) == 1


async def test_names_that_are_holdfasts_own_are_not_written_over(one: RedisNode) -> None:
    content: list[Op] = [(ops.PUT, IMPORT_KEY, b"mine", None)]
    with pytest.raises(MoveError, match="the name 'holdfast:import' is Holdfast's own in Redis"):
        await put_into(one.url, Items(state_of(content)))


FOREIGN: list[tuple[str | bytes, ...]] = [
    ("HSET", "h", "f", "v"),
    ("SADD", "s", "m"),
    ("ZADD", "z", "1", "m"),
    ("XADD", "x", "*", "f", "v"),
    ("RPUSH", "l", "no mark"),
]


async def test_what_is_nothing_of_holdfasts_is_counted_and_named_or_left_out(one: RedisNode) -> None:
    await put_into(one.url, Items(state_of(EVERYTHING)))
    for number, words in enumerate(FOREIGN, 1):
        one.do(*words)
        with pytest.raises(
            MoveError, match=f"{number} keys? (is|are) nothing of Holdfast's: '[hszxl]' holds a [a-z ]+ "
        ):
            await take_from(one.url)
    assert dump_of(await take_from(one.url, skip_foreign=True)) == list(state_of(EVERYTHING).dump())


async def test_a_queue_that_expires_is_nothing_of_holdfasts(one: RedisNode) -> None:
    await put_into(one.url, Items(state_of(EVERYTHING)))
    one.do("PEXPIREAT", "long", NOW_MS + DAY_MS)
    with pytest.raises(MoveError, match="1 key is nothing of Holdfast's: 'long' holds a queue that expires"):
        await take_from(one.url)


async def test_a_redis_that_cannot_be_reached_or_does_not_let_us_in_is_named(one: RedisNode, tmp_path: Path) -> None:
    with pytest.raises(MoveError, match=r"127\.0\.0\.1:1 does not answer"):
        await take_from("redis://127.0.0.1:1")
    with RedisNode(tmp_path, password="right") as node, pytest.raises(MoveError) as caught:
        await take_from(f"redis://:wrong@127.0.0.1:{node.port}")
    assert "wrong" not in str(caught.value)
    assert "password" in str(caught.value)


async def test_what_redis_refuses_is_passed_on(one: RedisNode) -> None:
    source = Items(state_of(EVERYTHING), before=doing_at(3, one, "CONFIG", "SET", "maxmemory", 1))
    try:
        with pytest.raises(MoveError, match=r"refuses for '.*': .*used memory > 'maxmemory'"):
            await put_into(one.url, source)
    finally:
        one.do("CONFIG", "SET", "maxmemory", 0)
    assert (await put_into(one.url, Items(state_of(EVERYTHING)))).differences == []


# What goes wrong meanwhile


async def test_what_gets_lost_is_found_and_the_next_call_brings_it(one: RedisNode) -> None:
    def lose() -> None:
        one.do("DEL", "key 1", "session 1", "long")
        one.do("LSET", "fat", 1, "other")

    state = state_of([op for op in EVERYTHING if op[1] != b"fat"])
    moved = await put_into(one.url, Items(state_of(EVERYTHING), at_end=lose))
    assert moved.differences == [
        Difference("keys without expiry", 706, 705),
        Difference("keys with expiry", 72, 71),
        Difference("queues", 75, 74),
        Difference("values in queues", 2_583, 83),
    ]
    one.do("DEL", "fat")  # no call would change what is in a queue already
    moved = await put_into(one.url, Items(state_of(EVERYTHING)))
    assert (moved.differences, moved.resumed_at) == ([], 0)
    assert len(list(state.dump())) + 1 == moved.tally.entries


async def test_keys_that_others_write_are_found(one: RedisNode) -> None:
    def write() -> None:
        one.do("SET", "theirs", "1")
        one.do("SADD", "set", "1")

    moved = await put_into(one.url, Items(state_of([]), at_end=write))
    assert moved.differences == [Difference("keys without expiry", 0, 1), Difference("keys of other kinds", 0, 1)]


async def test_a_redis_that_forgets_what_was_noted_is_written_once_more(one: RedisNode) -> None:
    """A piece of a queue cannot follow one that is not there any more."""
    state = state_of([(ops.PUSH, b"q", LONG_QUEUE), (ops.PUT, b"a", b"", None)])
    with pytest.raises(MoveError, match="has lost some of what was written"):
        await put_into(one.url, Items(state, size=1, before=doing_at(3, one, "DEL", "q")))
    assert one.do("GET", IMPORT_KEY).startswith(b"0 ")
    assert (await put_into(one.url, Items(state))).differences == []
    assert tuple(one.do("LRANGE", "q", 1, -1)) == LONG_QUEUE


async def test_keys_that_expire_meanwhile_make_no_difference_and_are_counted(one: RedisNode) -> None:
    clock = Clock()

    def pass_time() -> None:
        clock.ahead_ms = DAY_MS + 10 * 7_001
        for number in range(9):
            one.do("DEL", f"session {number}")

    moved = await put_into(one.url, Items(state_of(EVERYTHING), at_end=pass_time), clock)
    assert moved.differences == []
    assert moved.expired == 9


async def test_keys_whose_time_is_up_are_not_written(one: RedisNode) -> None:
    gone: list[Op] = [(ops.PUT, b"gone %d" % deadline_ms, b"", deadline_ms) for deadline_ms in (0, 1, NOW_MS - 1)]
    moved = await put_into(one.url, Items(state_of([*EVERYTHING, *gone])))
    assert (moved.differences, moved.expired) == ([], 3)
    assert one.do("KEYS", "gone*") == []


async def test_resharding_stops_it_and_when_that_is_over_it_goes_on(redis_cluster: RedisCluster) -> None:
    slot = slot_of(b"{tag}1")
    home = redis_cluster.master_of_slot(slot)
    other = next(node for node in redis_cluster.masters if node is not home)
    state = state_of(EVERYTHING)

    def reshard(number: int) -> None:
        if number == 1:
            redis_cluster.migrate_slot(slot, other)

    try:
        with pytest.raises(MoveError, match=r"the cluster is being resharded: .* does not have '\{tag\}1' any more"):
            await put_into(redis_cluster.url, Items(state, before=reshard))
        assert (await put_into(redis_cluster.url, Items(state))).differences == []
        assert dump_of(await take_from(redis_cluster.url)) == list(state.dump())
    finally:
        await trio.to_thread.run_sync(redis_cluster.migrate_slot, slot, home)


async def test_masters_that_change_while_all_is_read_are_noticed(redis_cluster: RedisCluster) -> None:
    slot = slot_of(b"{tag}1")
    home = redis_cluster.master_of_slot(slot)
    other = next(node for node in redis_cluster.masters if node is not home)

    def reshard() -> None:
        redis_cluster.migrate_slot(slot, other)

    source = Items(state_of([(ops.PUT, b"a", b"", None)]), at_end=reshard)
    try:
        with pytest.raises(MoveError, match="have changed meanwhile"):
            await put_into(redis_cluster.url, source)
    finally:
        await trio.to_thread.run_sync(redis_cluster.migrate_slot, slot, home)


# Keys


class ScanningMaster(Master):
    """A master that only knows SCAN, and answers it as it was told to."""

    def __init__(self, pages: list[list[bytes]]) -> None:
        self.address = Address("fake", 1)
        self._pages = pages

    async def ask(self, *commands: Simple) -> list[Any]:
        (command,) = commands
        number = int(command.serialized_arguments[0])
        return [[b"%d" % ((number + 1) % len(self._pages)), self._pages[number]]]


async def keys_of(pages: list[list[bytes]]) -> list[bytes]:
    return [key async for keys in scan(ScanningMaster(pages)) for key in keys]


async def test_a_key_that_scan_gives_twice_is_read_once() -> None:
    assert await keys_of([[b"a", b"a", b"b"], [], [b"b", b"c", b"a"], [b"d"]]) == [b"a", b"b", b"c", b"d"]
    many = [b"%d" % number for number in range(RECENT_KEYS_MAX)]
    pages = [many[start : start + 500] for start in range(0, len(many), 500)]
    assert await keys_of([*pages, many[:1], many[-1:], [b"new"]]) == [*many, b"new"]


async def test_keys_of_a_table_that_shrinks_are_read_once(one: RedisNode) -> None:
    """Redis gives the table a new size when most of it is empty, some time after that."""
    one.do("EVAL", "for i = 1, 200000 do redis.call('SET', i, i) end", 0)
    one.do("EVAL", "for i = 1001, 200000 do redis.call('DEL', i) end", 0)
    found = await take_from(one.url)
    assert len(found) == 1_000
    assert {item.key for item in found} == {b"%d" % number for number in range(1, 1_001)}


async def test_the_masters_of_keys_are_those_of_the_cluster(redis_cluster: RedisCluster) -> None:
    async with open_masters(parse_endpoint(redis_cluster.url)) as masters:
        for key in (b"a", b"{tag}1", b""):
            assert masters.of(key).address.port == redis_cluster.master_of(key).port


# Clocks

YEAR_MS = 365 * DAY_MS


async def test_keys_of_a_store_whose_clock_was_ahead_have_as_long_to_live_as_there(one: RedisNode) -> None:
    time_ms = NOW_MS + YEAR_MS
    content: list[Op] = [(ops.PUT, b"k%d" % number, b"", time_ms + DAY_MS) for number in range(9)]
    with pytest.raises(MoveError, match="stop"):
        await put_into(one.url, Items(state_of(content), size=2, time_ms=time_ms, before=stop_at(3)))
    first_ms = one.do("PEXPIRETIME", "k0")
    assert DAY_MS - 60_000 < one.do("PTTL", "k0") <= DAY_MS + 1_000
    assert one.do("GET", IMPORT_KEY).startswith(b"6@")
    resumed = await put_into(one.url, Items(state_of(content), time_ms=0))  # how far it was ahead has been noted
    assert (resumed.differences, resumed.resumed_at) == ([], 6)
    assert {one.do("PEXPIRETIME", f"k{number}") for number in range(9)} == {first_ms}


@pytest.mark.parametrize("ahead_ms", [YEAR_MS, -YEAR_MS])
async def test_where_the_clock_of_redis_is_another_keys_have_as_long_to_live_there(
    one: RedisNode, ahead_ms: int
) -> None:
    clock = Clock()
    clock.ahead_ms = ahead_ms
    content: list[Op] = [(ops.PUT, b"k", b"", clock() + DAY_MS)]
    assert (await put_into(one.url, Items(state_of(content), time_ms=clock()), clock)).differences == []
    assert DAY_MS - 60_000 < one.do("PTTL", "k") <= DAY_MS + 1_000
    back = await take_from(one.url, clock)
    assert dump_of(back) == list(state_of(content).dump())


async def test_the_longest_expiry_goes_there_and_comes_back(one: RedisNode) -> None:
    content: list[Op] = [(ops.PUT, b"for ages", b"", NOW_MS + TTL_MS_MAX), (ops.PUT, b"last", b"", 2**63 - 1)]
    assert (await put_into(one.url, Items(state_of(content)))).differences == []
    assert dump_of(await take_from(one.url)) == list(state_of(content).dump())
