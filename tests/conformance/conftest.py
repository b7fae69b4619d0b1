"""What every test of this directory runs on: see docs/testing.md."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from tests.conformance.store import Backend, Embedded, OnRedis, Store
from tests.harness.process import Server
from tests.harness.redis import RedisCluster, RedisNode


@pytest.fixture(scope="session")
def on_cluster(running_redis_cluster: RedisCluster) -> OnRedis:
    return OnRedis(running_redis_cluster.url, running_redis_cluster.masters)


@pytest.fixture(scope="session")
def on_one_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRedis]:
    with RedisNode(tmp_path_factory.mktemp("redis")) as node:
        yield OnRedis(node.url, [node])


@pytest.fixture(scope="session")
def embedded() -> Embedded:
    return Embedded()


BACKENDS = ["embedded", "on_cluster", "on_one_redis"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """What the engine under test keeps its data in; empty."""
    backend: Backend = request.getfixturevalue(request.param)
    backend.clear()
    return backend


@pytest.fixture
async def store(backend: Backend, nursery: trio.Nursery) -> AsyncIterator[Store]:
    """A running engine on it."""
    store = await backend.open(nursery)
    yield store
    store.close()


@pytest.fixture(scope="module", params=BACKENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real process on it, one for all tests of a file."""
    backend: Backend = request.getfixturevalue(request.param)
    backend.clear()
    with Server(tmp_path_factory.mktemp("server") / "data", engine=backend.url) as server:
        yield server
        server.stop()
