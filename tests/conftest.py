"""Fixtures: see docs/testing.md."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
import trio
from trio._core import _run
from trio.testing import MockClock

from tests.harness.world import World


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # pytest-trio uses a clock only when the test itself asks for it, so a fixture cannot bring virtual time along.
    for item in items:
        if {"world", "autojump_clock"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.trio(run=run_under_virtual_time))


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[World]:
    """A running engine on a fresh fake disk; a test that asks for it runs under virtual time."""
    world = World(nursery)
    await world.start()
    yield world
    nursery.cancel_scope.cancel()
