"""Python's cycle collector, made fit for a process that is mostly one large store.

A full collection looks at every container there is. The store's queues are containers without cycles, so to look at
a million of them, 350 ms each time, finds nothing. Here, whatever has survived a full collection is frozen: out of its
sight for good, though still freed when nobody refers to it any more. So each full collection looks only at what came
since the one before. While a million queues were made through the engine the longest pause was 6 ms, and all full
collections together took 0.3 s; with the collector as it comes 570 ms and more, and 17.6 s.

The price is that a cycle which dies after it was frozen stays. So now and then the frozen objects are counted, and if
they are many more than the store accounts for, all are looked at once more: one long pause, rather than a leak.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

THRESHOLDS = (2_000, 4, 2)
"""New containers until a young collection, young ones until a middle one, middle ones until a full one: each full one
looks at some 30,000 objects, about 9 ms."""

COUNT_FROZEN = 2_000_000
"""Objects frozen until all are counted, at least as many as the last time: to count a million takes 20 ms."""

COUNT_QUEUES_MAX = 500_000
"""With more queues nothing is counted: that alone would be a pause of 10 ms and more, for a few cycles at most."""

SPARE_OBJECTS = 500_000
"""More frozen objects than the store accounts for, and as many again, that are borne before all are looked at."""


class Collector:
    """Tunes the collector for as long as a `with` block lasts; begin it when the store is there.

    Args:
        queues: number of queues in the store.
    """

    def __init__(self, queues: Callable[[], int]) -> None:
        self._queues = queues
        self._others = 0
        self._counted = 0
        self._frozen_since = 0

    def __enter__(self) -> None:
        gc.freeze()
        gc.collect()  # costs nothing now; Python waits with a full one until a quarter as much has come as the last saw
        self._counted = gc.get_freeze_count()
        self._others = self._counted - self._queues()
        self._before = gc.get_threshold()
        gc.set_threshold(*THRESHOLDS)
        gc.callbacks.append(self._collected)

    def __exit__(self, *_exception: object) -> None:
        gc.callbacks.remove(self._collected)
        gc.set_threshold(*self._before)
        gc.unfreeze()

    def _collected(self, phase: str, info: dict[str, Any]) -> None:
        """Called by the collector before and after each collection."""
        if phase != "stop" or info["generation"] < 2:
            return
        self._frozen_since += len(gc.get_objects(generation=2))
        gc.freeze()
        if self._frozen_since > max(COUNT_FROZEN, self._counted) and self._queues() <= COUNT_QUEUES_MAX:
            self._count()

    def _count(self) -> None:
        self._counted, self._frozen_since = gc.get_freeze_count(), 0
        if self._counted > self._others + 2 * self._queues() + SPARE_OBJECTS:
            gc.unfreeze()
            self._counted = 0
