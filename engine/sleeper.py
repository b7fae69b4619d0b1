"""A task that sleeps until somebody wakes it: what a trio.Event is, for one task, again and again, and cheaper."""

from __future__ import annotations

from collections.abc import Callable

import trio


class Sleeper:
    """The place where one task sleeps."""

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def sleep(self, cancelled: Callable[[], None] = lambda: None) -> None:
        """Returns at the next `wake`; one that came before is no use.

        Args:
            cancelled: called at once, within the cancellation, when there is one.
        """

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            cancelled()
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """Wakes the task, if it sleeps."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None
