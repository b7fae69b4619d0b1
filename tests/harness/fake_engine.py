"""A fake engine behind HTTP: a few lines that answer at once, park pops, and note down what they were asked."""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from collections.abc import Callable

import trio

from engine.calls import Call, Stage
from engine.checkpointer import Checkpoint
from engine.commands import BQPop, Command, Get, Ping, QPush, Set, Ttl
from engine.replies import Error, Failure, Ok, Reply, Value


@dataclasses.dataclass(frozen=True)
class FakeStatistics:
    waiters: int
    commit_p50_ms: float = 0.25
    disk_full: int = 0


class FakeEngine:
    """Answers in memory, a moment later.

    Attributes:
        commands: what was done, in order.
        withdrawn: keys of the pops that were withdrawn while they were parked.
    """

    def __init__(self) -> None:
        self.accepting = True
        self.commands: list[Command] = []
        self.withdrawn: list[bytes] = []
        self._keys: dict[bytes, bytes] = {}
        self._queues: dict[bytes, deque[bytes]] = defaultdict(deque)
        self._parked: dict[bytes, deque[Call]] = defaultdict(deque)

    async def checkpoint(self) -> Checkpoint:
        return Checkpoint(segments=2, folded_bytes=3000, snapshot_bytes=100, duration_s=0.5)

    def statistics(self) -> FakeStatistics:
        return FakeStatistics(sum(map(len, self._parked.values())))

    async def submit(self, command: Command) -> Reply:
        answered = trio.Event()
        call = self.submit_nowait(command, lambda _: answered.set())
        try:
            await answered.wait()
        except trio.Cancelled:
            self.withdraw(call)
            raise
        assert call.reply is not None
        return call.reply

    def submit_nowait(self, command: Command, deliver: Callable[[Call], None]) -> Call:
        call = Call(command, deliver)
        trio.lowlevel.current_trio_token().run_sync_soon(self._perform, call)
        return call

    def settle(self, call: Call) -> None:
        """The fake gives nothing back."""

    def withdraw(self, call: Call) -> None:
        if call.stage is Stage.PARKED:
            assert isinstance(call.command, BQPop)
            self._parked[call.command.key].remove(call)
            self.withdrawn.append(call.command.key)
        call.stage = Stage.WITHDRAWN

    def shut_down(self) -> None:
        """Wakes all who wait, as the engine does."""
        self.accepting = False
        for call in [one for queue in self._parked.values() for one in queue]:
            self._answer(call, Failure(Error.UNAVAILABLE, "shutting down"))

    def _perform(self, call: Call) -> None:
        if call.stage is Stage.WITHDRAWN:
            return
        self.commands.append(call.command)
        if isinstance(call.command, BQPop):
            self._pop(call, call.command.key)
            return
        match call.command:
            case Ping():
                self._answer(call, Value(b"PONG"))
            case Set(key, value):
                self._keys[key] = value
                self._answer(call, Ok())
            case Get(key) if key in self._keys:
                self._answer(call, Value(self._keys[key]))
            case Get():
                self._answer(call, Failure(Error.KEY_NOT_FOUND))
            case QPush(key, values):
                self._queues[key].extend(values)
                self._answer(call, Ok(len(self._queues[key])))
                while self._parked[key] and self._queues[key]:
                    self._answer(self._parked[key].popleft(), Value(self._queues[key].popleft()))
            case Ttl():
                self._answer(call, Failure(Error.INTERNAL_ERROR))
            case _:
                self._answer(call, Failure(Error.WRONG_TYPE, "the fake does not know it"))

    def _pop(self, call: Call, key: bytes) -> None:
        if self._queues[key]:
            self._answer(call, Value(self._queues[key].popleft()))
        else:
            call.stage = Stage.PARKED
            self._parked[key].append(call)

    def _answer(self, call: Call, reply: Reply) -> None:
        call.reply = reply
        call.stage = Stage.SETTLED
        call.deliver(call)
