"""No memory left, at any line of the engine or the log: it ends at once, and nothing is half done afterwards.

An allocation may fail wherever Python runs, so MemoryError is raised before the first line that runs, before the
second, and so on until all of them have had their turn.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import trio

from engine.replies import Integer, Ok, Reply, Value
from tests.harness.disk import FakeDisk
from tests.harness.process import ROOT
from tests.harness.world import World
from wal.open_segment import ALLOCATE_BYTES_MIN

OURS = (f"{ROOT}/engine/", f"{ROOT}/wal/")


class OutOfMemory:
    """Raises MemoryError before one line, once.

    Args:
        beneath: qualified name of a function; only lines of ours that run in what it calls count.
        number: of the line, from 0.
    """

    def __init__(self, beneath: str, number: int) -> None:
        self.struck = False
        self._beneath = beneath
        self._left = number

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Counts within the block."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        # Not in coroutines: Python says "line" as well before it leaves a `with`, and the scope would stay open.
        if self.struck or not code.co_filename.startswith(OURS) or code.co_flags & inspect.CO_COROUTINE:
            return None
        caller: FrameType | None = frame
        while caller is not None and caller.f_code.co_qualname != self._beneath:
            caller = caller.f_back
        return None if caller is None else self._step

    def _step(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line" and not self.struck:
            self._left -= 1
            if self._left < 0:
                self.struck = True
                raise MemoryError
        return self._step


BEFORE = ("SET a old", "SET b old PX 60000", "QPUSH jobs x y")

CASES: dict[str, tuple[str, str, Reply]] = {
    "in a write over an expiry": ("Actor.run", "SET b new EX 60", Ok()),
    "between two effects": ("Actor.run", "DELETE a jobs", Integer(2)),
    "in a pop": ("Actor.run", "QPOP jobs", Value(b"y")),
    "in a push that serves a waiter": ("Actor.run", "QPUSH awaited v w", Ok(length=2)),
    "in the commit of two effects": ("Committer._commit", "DELETE a jobs", Integer(2)),
}


async def run_out(
    nursery: trio.Nursery, disk: FakeDisk, line: str, memory: OutOfMemory
) -> tuple[list[Any], Reply | None]:
    """Sends a command while memory runs out.

    Returns:
        What the next start finds, and the reply, None if there was none.
    """
    world = World(nursery, disk=disk.copy(), segment_bytes_max=ALLOCATE_BYTES_MIN)
    await world.start()
    waiter = await world.park("BQPOP awaited")
    with memory.armed():
        job = world.spawn(line)
        await job.done.wait()
        await world.settle()
    assert isinstance(world.failure, BaseExceptionGroup) == memory.struck, "it goes on as if nothing were wrong"
    reply = job.reply
    waiter.leave()
    await world.kill()
    await world.start()
    await world.kill()
    return list(world.found), reply


@pytest.mark.parametrize(("beneath", "line", "expected"), CASES.values(), ids=CASES.keys())
async def test_wherever_memory_runs_out_the_engine_ends_and_the_command_is_done_or_not(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, beneath: str, line: str, expected: Reply
) -> None:
    """B14, I2"""
    world = World(nursery, segment_bytes_max=ALLOCATE_BYTES_MIN)
    await world.start()
    for command in BEFORE:
        await world.do(command)
    before = world.dump()
    await world.kill()
    after, reply = await run_out(nursery, world.disk, line, OutOfMemory("nothing", 0))
    assert reply == expected
    for number in range(1_000):
        memory = OutOfMemory(beneath, number)
        found, reply = await run_out(nursery, world.disk, line, memory)
        assert found in (before, after), number
        assert reply in (None, expected), number
        assert found == after or reply is None, number
        if not memory.struck:
            break
    assert 50 < number < 1_000
    nursery.cancel_scope.cancel()
