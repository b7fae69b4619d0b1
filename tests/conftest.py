"""Fixtures: see docs/testing.md."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from tests.harness.world import World


@pytest.fixture
async def world(autojump_clock: MockClock, nursery: trio.Nursery) -> AsyncIterator[World]:
    """A running engine on a fresh fake disk, under virtual time."""
    world = World(nursery)
    await world.start()
    yield world
    nursery.cancel_scope.cancel()
