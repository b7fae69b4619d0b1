"""Fixtures: see docs/testing.md."""

from __future__ import annotations

import gc
import inspect
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import pytest
import trio
from hypothesis import HealthCheck, settings
from trio._core import _run
from trio.testing import MockClock

from tests.harness.costs import Costs
from tests.harness.effort import many
from tests.harness.redis import RedisCluster
from tests.harness.world import World

settings.register_profile(
    "holdfast",
    max_examples=many(100),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("holdfast")  # the same examples every time, however long a busy machine takes for them

gc.disable()  # until all tests are there: they are collected, not to be collected

PATIENCE_S = 300.0
"""For a whole test: each step of it may take a minute on a busy machine, and most take none."""


async def _patiently(function: Callable[[], Awaitable[None]]) -> None:
    with trio.move_on_after(PATIENCE_S) as scope:
        try:
            await function()
        finally:
            assert not scope.cancel_called, "the test waits for ever"


def run_with_patience(
    function: Callable[[], Awaitable[None]],
    *,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> None:
    """`trio.run` in real time, but not for ever."""
    trio.run(_patiently, function, clock=clock, instruments=instruments)


def run_under_virtual_time(
    function: Callable[[], Awaitable[None]],
    *,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> None:
    """`trio.run` with a clock that jumps to the next deadline whenever nothing else can happen.

    Tasks that are ready in the same tick run in an order that trio draws by lot; the seed makes it the same every time.
    """
    _run._r.seed(0)  # pytest-trio has made everything else deterministic
    trio.run(function, clock=clock or MockClock(autojump_threshold=0), instruments=instruments)


def run_under_still_clock(
    function: Callable[[], Awaitable[None]],
    *,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> None:
    """`trio.run` with a clock that is moved by hand: what waits for a socket or a thread waits in real time."""
    run_under_virtual_time(function, clock=clock or MockClock(), instruments=instruments)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Costs())


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are processors: now and then each waits, for a Redis that fails over, say."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # pytest-trio uses a clock only when the test itself asks for it, so a fixture cannot bring virtual time along.
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "still_clock" in fixtures:
            item.add_marker(pytest.mark.trio(run=run_under_still_clock))
        elif {"world", "autojump_clock"} & fixtures:
            item.add_marker(pytest.mark.trio(run=run_under_virtual_time))
        elif inspect.iscoroutinefunction(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.trio(run=run_with_patience))


def pytest_collection_finish() -> None:
    """The cycle collector looks no more at modules and tests, 200,000 objects, which took a fifth of all time, and
    less often at what is new: each engine alone begins with thousands of objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[World]:
    """A running engine on a fresh fake disk; a test that asks for it runs under virtual time."""
    world = World(nursery)
    await world.start()
    yield world
    nursery.cancel_scope.cancel()


@pytest.fixture
async def still_clock() -> MockClock:
    """The clock of a test that asks for it, which stands still but for its `jump`; see also `patience`."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    return clock


@pytest.fixture
async def patience(nursery: trio.Nursery) -> AsyncIterator[None]:
    """Fails a test that waits for ever: where the test moves the clock, no deadline of its own would."""
    over = trio.Event()
    timer = threading.Timer(PATIENCE_S, trio.lowlevel.current_trio_token().run_sync_soon, [over.set])

    async def complain() -> None:
        await over.wait()
        raise AssertionError("the test waits for ever")

    nursery.start_soon(complain)
    timer.start()
    yield
    timer.cancel()
    nursery.cancel_scope.cancel()


@pytest.fixture(scope="session")
def running_redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """The cluster behind `redis_cluster`."""
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(running_redis_cluster: RedisCluster) -> RedisCluster:
    """A cluster without data, which all tests of a process share: it must be left as it was, but for the data."""
    running_redis_cluster.flush()
    return running_redis_cluster


@pytest.fixture(scope="module")
def own_redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A cluster for the tests of one file, which may do anything to it, and leave it as they like to find it."""
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
