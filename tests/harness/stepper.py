"""Trio, moved step by step from code that is not async: for Hypothesis state machines.

    stepper = Stepper()
    stepper.run(world.start)          # the rule waits until the step is over
    stepper.run_through(world.stop)   # likewise, but virtual time passes as it needs
    stepper.close()

One trio run lives in a thread of its own for as long as the stepper; between steps it stands still, and so does its
clock. Steps run one at a time, so a run can be repeated exactly.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import outcome
import trio
import trio.testing

T = TypeVar("T")


class Stepper:
    """A trio run under virtual time; `nursery` is there for what outlives a step."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery
        self._clock = trio.testing.MockClock()
        self._result: outcome.Outcome[None]
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken
        self._thread = threading.Thread(target=self._run_thread, name="stepper", daemon=True)
        self._thread.start()
        self._ready.wait()

    def run(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Runs an async function to its end, and until nothing can happen any more without time passing."""

        async def step() -> T:
            result = await function(*args)
            await trio.testing.wait_all_tasks_blocked()
            return result

        try:
            return trio.from_thread.run(step, trio_token=self._token)
        except trio.RunFinishedError:
            self.close()  # raises what ended the run
            raise

    def run_through(self, function: Callable[..., Awaitable[object]], *args: object) -> int:
        """Runs an async function that takes time; returns how many virtual milliseconds it took."""

        async def step() -> int:
            started_s = trio.current_time()
            self._clock.autojump_threshold = 0
            try:
                await function(*args)
            finally:
                self._clock.autojump_threshold = math.inf
            return round((trio.current_time() - started_s) * 1000)

        return self.run(step)

    def close(self) -> None:
        """Cancels what is left in the nursery and ends the run; raises what its tasks raised."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.nursery.cancel_scope.cancel)
        self._thread.join()
        self._result.unwrap()

    def _run_thread(self) -> None:
        self._result = outcome.capture(partial(trio.run, self._main, clock=self._clock))
        self._ready.set()

    async def _main(self) -> None:
        async with trio.open_nursery() as self.nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            try:
                await trio.sleep_forever()
            finally:  # closed, or a task failed: a commit on its way is not cancelled, it takes its time
                self._clock.autojump_threshold = 0
