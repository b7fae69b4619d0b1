"""A World that makes checkpoints: how long the fold takes, how it ends, and what happens meanwhile are the test's.

world = FoldingWorld(nursery, segment_bytes_max=64 * KIB)
await world.start()
done = await world.engine.checkpoint()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from engine.embedded.fold import fold
from engine.face import FoldFailed
from tests.harness.disk import FakeDirectory
from tests.harness.world import World
from wal.log import LogFailed
from wal.manifest import Snapshot
from wal.segment import Damage
from wal.snapshot import FoldPlan


class Killed(Exception):
    """The fold's process was ended, and could not tidy up."""


class FoldingWorld(World):
    """Folds inline beside the lock, as the child process does.

    Attributes:
        fold_s: how long a fold takes before it reads, in seconds of virtual time; unlike a commit it can be given up.
        after_s: how long it takes after it has written.
        folds: the plans so far.
        running: the number of folds under way, and `most_running` the most there were at once.
        refuse: called with each plan first; may raise what the fold is to fail with.
    """

    def __init__(self, nursery: trio.Nursery, **options: Any) -> None:
        super().__init__(nursery, checkpoints=True, **options)
        self.fold_s = self.after_s = 0.0
        self.folds: list[FoldPlan] = []
        self.running = self.most_running = 0
        self.refuse: Callable[[FoldPlan], None] = lambda _plan: None
        self._child: FakeDirectory | None = None

    def kill_fold(self) -> None:
        """Ends the fold's process where it is; to be called from a fault."""
        assert self._child is not None, "nothing is being folded"
        self.disk.release(self._child)
        raise Killed

    async def _fold(self, plan: FoldPlan) -> Snapshot:
        self.folds.append(plan)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self._child = self.disk.beside()
        try:
            self.refuse(plan)
            await trio.sleep(self.fold_s)
            snapshot = fold(self._child, plan)
            await trio.sleep(self.after_s)
        except Killed:
            raise FoldFailed("its process was ended by SIGKILL") from None
        finally:
            self.running -= 1
            self._child.close()
            self._child = None
        return snapshot

    async def _run_engine(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._scope:
                await self.engine.run(task_status)
        except* (LogFailed, Damage) as failure:
            self.failure = failure
            for job in list(self._jobs):
                job.leave()
        finally:
            self._ended.set()
