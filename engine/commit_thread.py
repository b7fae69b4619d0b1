"""The commit thread: what blocks on the disk is run here, one function after the other, while the event loop goes on.

`trio.to_thread` would do, but it looks for an idle thread each time, names it, and copies a context: 101 microseconds
a call, 62 of them in the event loop's thread, against 75 and 40 here. For 50 clients that is 6 % more SETs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

import trio


@dataclass(slots=True, eq=False)
class _Job:
    """A function to run, the task that waits for it, and what it raised."""

    function: Callable[[], None]
    task: trio.lowlevel.Task
    token: trio.lowlevel.TrioToken
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.function()
        except BaseException as error:  # it is raised where it is waited for
            self.error = error
        self.token.run_sync_soon(trio.lowlevel.reschedule, self.task)


class CommitThread:
    """A thread that lives for as long as a `with` block. It is no daemon: what it has begun, it ends."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="holdfast commits")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exception: object) -> None:
        self._jobs.put(None)
        self._thread.join()

    async def __call__(self, function: Callable[[], None]) -> None:
        """Runs a function in the thread and waits for its end, whoever cancels: a commit is never abandoned.

        Raises:
            Whatever the function raises.
        """
        job = _Job(function, trio.lowlevel.current_task(), trio.lowlevel.current_trio_token())
        self._jobs.put(job)
        await trio.lowlevel.wait_task_rescheduled(lambda _raise_cancel: trio.lowlevel.Abort.FAILED)
        if job.error is not None:
            raise job.error

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
