"""Waiting for what another process, or the kernel, does in its own time: it has no event for us."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import trio

WITHIN_S = 60.0
"""Longest wait; on a busy machine what takes milliseconds takes seconds."""


def wait_until(
    condition: Callable[[], Any],
    complaint: Callable[[], str] = lambda: "it did not happen",
    *,
    pause_s: float = 0.002,
    within_s: float = WITHIN_S,
) -> None:
    """Returns when something has come about.

    Args:
        condition: whether it has.
        complaint: what to say if it never does.
        pause_s: between two looks.
        within_s: the longest it may take.
    """
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, complaint()
        time.sleep(pause_s)


async def until(
    condition: Callable[[], Any], complaint: Callable[[], str] = lambda: "it did not happen", *, pause_s: float = 0.005
) -> None:
    """Does as `wait_until` does, beside other tasks."""
    with trio.move_on_after(WITHIN_S):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(pause_s)
        return
    raise AssertionError(complaint())
