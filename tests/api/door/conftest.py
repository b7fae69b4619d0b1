"""Servers by the door: with the fake engine, and with the real one under virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from api.server.http import serve_door
from tests.api.door.stand import COMMIT_S, Stand
from tests.harness.http import Server
from tests.harness.world import World


@pytest.fixture
async def server(nursery: trio.Nursery, patience: None) -> AsyncIterator[Server]:
    server = Server(nursery, serve_door)
    yield server
    server.hang_up()


@pytest.fixture
async def stand(nursery: trio.Nursery, patience: None, still_clock: MockClock) -> AsyncIterator[Stand]:
    world = World(nursery, commit_s=COMMIT_S)
    await world.start()
    stand = Stand(nursery, world, still_clock)
    yield stand
    stand.hang_up()
    await world.kill()
