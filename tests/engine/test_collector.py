"""The cycle collector: it looks only at what is new, and finds what died after it was frozen."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from engine import collector
from engine.collector import THRESHOLDS, Collector
from engine.store import ops
from engine.store.state import State

FULL = THRESHOLDS[0] * (THRESHOLDS[1] + 1) * (THRESHOLDS[2] + 1)
"""New containers until a full collection."""


class Knot:
    """An object in a cycle with itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def collector_as_it_was() -> Iterator[None]:
    gc.unfreeze()  # what tests/conftest.py has frozen
    gc.collect()
    yield
    gc.freeze()


@pytest.mark.costly("a store of 600,000 queues")
def test_no_full_collection_looks_at_more_than_what_is_new_however_large_the_store() -> None:
    state = State()
    for number in range(10 * FULL):
        state.apply((ops.PUSH, b"replayed %d" % number, (b"v",)))
    gc.collect()
    looked_at: list[int] = []

    def count(phase: str, info: dict[str, Any]) -> None:
        if phase == "start" and info["generation"] == 2:
            looked_at.append(len(gc.get_objects()))

    gc.callbacks.append(count)
    try:
        with Collector(lambda: state.queue_count):
            for number in range(10 * FULL):
                state.apply((ops.PUSH, b"%d" % number, (b"v",)))
    finally:
        gc.callbacks.remove(count)
    assert len(looked_at) > 5
    assert max(looked_at) < 2 * FULL


def test_it_leaves_the_collector_as_it_was() -> None:
    before = gc.get_threshold(), gc.callbacks.copy()
    with Collector(lambda: 0):
        assert gc.get_threshold() == THRESHOLDS
    assert (gc.get_threshold(), gc.callbacks) == before
    assert gc.get_freeze_count() == 0


def test_a_cycle_that_dies_young_is_freed() -> None:
    with Collector(lambda: 0):
        knot = weakref.ref(Knot())
        gc.collect()
        assert knot() is None


def test_a_cycle_that_dies_after_it_was_frozen_is_freed_when_such_have_become_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector, "COUNT_FROZEN", 1_000)
    monkeypatch.setattr(collector, "SPARE_OBJECTS", 10_000)
    store = [[] for _ in range(50_000)]  # type: ignore[var-annotated]  # as many containers as so many queues
    with Collector(lambda: len(store)):
        knot = Knot()
        seen = weakref.ref(knot)
        gc.collect()
        del knot
        for _ in range(3):
            gc.collect()
            assert seen() is not None, "it is frozen, and the store accounts for all that is"
        count = gc.get_freeze_count() + 200_000  # they are counted when as many have come as there were
        more = [[] for _ in range(count)]  # type: ignore[var-annotated]
        gc.collect()
        gc.collect()
        assert seen() is None
        assert len(more) == count
