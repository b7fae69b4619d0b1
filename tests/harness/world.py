"""The real engine on a fake disk under virtual time: start, talk, park, crash, reopen, compare.

    async def test_a_value_survives_a_power_cut(world):
        await world.do("SET k v")
        await world.cut_power()
        await world.start()
        assert await world.do("GET k") == Value(b"v")

With pytest-trio's `autojump_clock` hours of expiry and timeouts pass in milliseconds; commits run inline and take
`commit_s` of virtual time, so that what happens while a group is being synced can be arranged exactly. A crash comes
in between: what is on its way to the disk is lost, or, with `written`, written but not synced.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar

import trio
import trio.testing

from engine.calls import Command
from engine.commands.table import parse
from engine.embedded.committer import FsyncPolicy
from engine.embedded.engine import Engine
from engine.embedded.fold import fold
from engine.embedded.recovery import recover
from engine.limits import MIB, Limits
from engine.replies import Refused, Reply
from engine.store.state import State
from tests.harness.disk import FakeDisk, failing
from wal.log import LogFailed
from wal.manifest import Snapshot
from wal.snapshot import FoldPlan

EPOCH_MS = 1_700_000_000_000
"""The wall clock when virtual time is 0, milliseconds since 1970."""

SEGMENT_BYTES_MAX = MIB
"""A start reads the whole of a segment, with the zeros that are allocated ahead: 64 MiB, the product's, take 20 ms."""


C = TypeVar("C")
R = TypeVar("R")


class _Submitted(Generic[C, R]):
    """What is on its way: its reply once it is there, and the means to leave before.

    Attributes:
        submitted: its place in the order of submission, over all jobs of the world; None before.
        reply: None while there is none, for ever when the client left or the engine went down before.
        done: set when there is a reply or never will be.
    """

    def __init__(self, command: C) -> None:
        self.command = command
        self.submitted: int | None = None
        self.reply: R | None = None
        self.done = trio.Event()
        self._scope = trio.CancelScope()

    def leave(self) -> None:
        """The client goes away."""
        self._scope.cancel()

    async def run(self, submit: Callable[[C], Awaitable[R]], number: int) -> None:
        """Submits the command as the world's `number`th."""
        self.submitted = number
        with self._scope:
            self.reply = await submit(self.command)
        self.done.set()

    async def wait(self) -> R:
        """Waits for the reply."""
        await self.done.wait()
        assert self.reply is not None, f"{self.command} was not answered"
        return self.reply


class Job(_Submitted[Command, Reply]):
    """A command on its way."""


class BatchJob(_Submitted[list[Command], list[Reply] | Refused]):
    """A batch on its way."""


class World:
    """One disk and the engines that come and go on it.

    Args:
        nursery: where engines and jobs run.
        disk: to start from; a fresh one by default.
        limits: of the engines.
        fsync: their policy.
        commit_s: how long a commit takes, in seconds of virtual time.
        delays: asked at each commit how long it takes before its work is done and after, instead of `commit_s`.
        segment_bytes_max: size at which segments roll.
        checkpoints: whether the engine makes checkpoints; they are folded inline, beside the lock.
        wall_offset_ms: how far the wall clock is from `EPOCH_MS` plus virtual time; a test may change it.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        disk: FakeDisk | None = None,
        limits: Limits | None = None,
        fsync: FsyncPolicy = FsyncPolicy.ALWAYS,
        commit_s: float = 0.0,
        delays: Callable[[], tuple[float, float]] | None = None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        checkpoints: bool = False,
    ) -> None:
        self.disk = disk or FakeDisk(allocates=True)
        self.limits = limits or Limits()
        self.fsync = fsync
        self.commit_s = commit_s
        self.delays = delays or (lambda: (self.commit_s, 0.0))
        self.wall_offset_ms = 0
        self.crash_pause_s = 0.0
        """How long after a crash the first checkpoint waits that nobody asked for."""
        self.failure: BaseException | None = None
        self.found: tuple[tuple[Any, ...], ...] = ()
        """What the last start has replayed, before the engine did anything, swept expired keys for example."""
        self.engine: Engine
        self.state: State
        self._segment_bytes_max = segment_bytes_max
        self._checkpoints = checkpoints
        self._nursery = nursery
        self._jobs: dict[_Submitted[Any, Any], None] = {}  # a set would lose their order
        self._submitted = 0
        self._scope = trio.CancelScope()
        self._crashed, self._ended = trio.Event(), trio.Event()

    @property
    def wall_ms(self) -> int:
        """What the wall clock shows."""
        return EPOCH_MS + round(trio.current_time() * 1000) + self.wall_offset_ms

    @property
    def ended(self) -> trio.Event:
        """Set when the engine has come to its end, whichever it was."""
        return self._ended

    async def start(self) -> None:
        """Replays the disk and starts an engine on it."""
        wall_ms = self.wall_ms
        directory = self.disk.directory()
        try:
            self.state, log = recover(
                directory, self.limits, wall_ms=wall_ms, segment_bytes_max=self._segment_bytes_max
            )
        except BaseException:
            directory.close()
            raise
        self.found = tuple(self.state.dump())
        self.engine = Engine(
            self.state,
            log,
            self.limits,
            fsync=self.fsync,
            wall_ms=wall_ms,
            run_commit=self._run_commit,
            fold=self._fold if self._checkpoints else None,
            crash_pause_s=self.crash_pause_s,
        )
        self.failure = None
        self._scope, self._crashed, self._ended = trio.CancelScope(), trio.Event(), trio.Event()
        await self._nursery.start(self._run_engine)

    async def do(self, line: str) -> Reply:
        """Submits a command, words split at spaces, and waits for its reply."""
        return await self.spawn(line).wait()

    def spawn(self, line: str | list[bytes]) -> Job:
        """Submits a command without waiting; it is with the engine after the next `settle`."""
        job = Job(self._parse(line))
        self._jobs[job] = None
        self._nursery.start_soon(self._run_job, job, lambda command: self.engine.submit(command))
        return job

    async def do_many(self, *lines: str, atomic: bool = False) -> list[Reply] | Refused:
        """Submits commands as one batch, and waits for the answer."""
        return await self.spawn_many(*lines, atomic=atomic).wait()

    def spawn_many(self, *lines: str | list[bytes], atomic: bool = False) -> BatchJob:
        """Submits a batch without waiting."""
        job = BatchJob([self._parse(line) for line in lines])
        self._jobs[job] = None
        self._nursery.start_soon(self._run_job, job, lambda commands: self.engine.submit_many(commands, atomic=atomic))
        return job

    async def park(self, line: str) -> Job:
        """Submits a command that waits, and returns when it does."""
        job = self.spawn(line)
        await self.settle()
        assert not job.done.is_set(), f"{line} did not wait"
        return job

    async def settle(self) -> None:
        """Returns when nothing can happen any more without time passing."""
        await trio.testing.wait_all_tasks_blocked()

    async def stop(self) -> None:
        """Shuts the engine down cleanly."""
        self.engine.close()
        await self._ended.wait()

    async def kill(self, *, written: bool = False) -> None:
        """SIGKILL: the engine is gone, what it wrote is not.

        Args:
            written: the group on its way is written; only its sync has not happened.
        """
        await self._crash(self.disk.kill, written=written)

    async def cut_power(self, torn: random.Random | None = None, *, written: bool = False) -> None:
        """Power failure: what was not synced is gone.

        Args:
            torn: when given, a random part of what was not synced stays.
            written: the group on its way is written, but not synced.
        """
        await self._crash(partial(self.disk.cut_power, torn), written=written)

    def dump(self) -> list[tuple[Any, ...]]:
        """The whole state, in a fixed order."""
        return list(self.state.dump())

    def _parse(self, line: str | list[bytes]) -> Command:
        argv = line.encode().split(b" ") if isinstance(line, str) else line
        return parse(argv, self.limits)

    async def _run_commit(self, function: Callable[[], None]) -> None:
        before_s, after_s = self.delays()
        await trio.lowlevel.checkpoint()
        await self._pass_time(before_s)
        function()
        if after_s:
            await self._pass_time(after_s)

    async def _fold(self, plan: FoldPlan) -> Snapshot:
        """Does what the process of a checkpoint does; it takes as long as a commit."""
        before_s, after_s = self.delays()
        await self._pass_time(before_s)
        snapshot = fold(self.disk.beside(), plan)
        await self._pass_time(after_s)
        return snapshot

    async def _pass_time(self, duration_s: float) -> None:
        with trio.CancelScope(deadline=trio.current_time() + duration_s, shield=True):
            await self._crashed.wait()

    async def _run_engine(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._scope:
                await self.engine.run(task_status)
        except* (LogFailed, MemoryError) as failure:
            self.failure = failure
            for job in list(self._jobs):
                job.leave()  # as when the process ends: nobody is answered any more
        finally:
            self._ended.set()

    async def _run_job(self, job: _Submitted[C, R], submit: Callable[[C], Awaitable[R]]) -> None:
        self._submitted += 1
        await job.run(submit, self._submitted)
        del self._jobs[job]

    async def _crash(self, fail_disk: Callable[[], None], *, written: bool) -> None:
        if written:
            self.disk.fault = failing("sync", "sync_directory")
            await self._end()
            fail_disk()
        else:
            # The disk goes first: nothing that the dying engine does in its cleanup may reach it.
            fail_disk()
            await self._end()
        for job in list(self._jobs):
            job.leave()
        await self.settle()

    async def _end(self) -> None:
        self._crashed.set()
        self._scope.cancel()
        await self._ended.wait()
