"""What every test of this directory runs on: see docs/testing.md."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from tests.conformance.store import Backend, Embedded, Store


@pytest.fixture(params=["embedded"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """What the engine under test keeps its data in; empty."""
    return Embedded()


@pytest.fixture
async def store(backend: Backend, nursery: trio.Nursery) -> AsyncIterator[Store]:
    """A running engine on it."""
    store = await backend.open(nursery)
    yield store
    store.close()
