"""A fake engine behind HTTP: a few lines that answer at once, park pops, and note down what they were asked."""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import trio

from engine.calls import AnyCall, Batch, Call, Command, Stage
from engine.commands.keys import Ttl
from engine.commands.queues import BQPop, QPush
from engine.commands.server import Ping
from engine.commands.values import Get, Set
from engine.face import Checkpoint, Face
from engine.replies import Error, Failure, Ok, Reply, Value

DEFECT = Ttl(b"k")
"""What the fake fails at."""

SHUTTING_DOWN = Failure(Error.UNAVAILABLE, "shutting down")


@dataclasses.dataclass(frozen=True)
class FakeStatistics:
    waiters: int
    commit_p50_ms: float = 0.25


class FakeFront(Face):
    """Answers in memory, a moment later; has no log of its own.

    Attributes:
        ready: what it says of its readiness while it accepts.
        commands: what was done, in order.
        withdrawn: keys of the pops that were withdrawn while they were parked; `b"a batch"` for a batch.
        settled: what was handed over.
    """

    def __init__(self) -> None:
        self.accepting = True
        self.copies_values = False
        self.ready: Failure | dict[str, str | int] = {"engine": "a fake"}
        self.commands: list[Command] = []
        self.withdrawn: list[bytes] = []
        self.settled: list[AnyCall] = []
        self._keys: dict[bytes, bytes] = {}
        self._queues: dict[bytes, deque[bytes]] = defaultdict(deque)
        self._parked: dict[bytes, deque[Call]] = defaultdict(deque)

    def statistics(self) -> FakeStatistics:
        return FakeStatistics(sum(map(len, self._parked.values())))

    def readiness(self) -> Failure | dict[str, str | int]:
        return self.ready if self.accepting else SHUTTING_DOWN

    async def submit(self, command: Command) -> Reply:
        if command == DEFECT:
            raise RuntimeError("a defect with a secret in it")
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
        if command == DEFECT:
            raise RuntimeError("a defect with a secret in it")
        call = Call(command, deliver)
        trio.lowlevel.current_trio_token().run_sync_soon(self._perform, call)
        return call

    def submit_many_nowait(self, commands: Sequence[Command], atomic: bool, deliver: Callable[[Batch], None]) -> Batch:
        if DEFECT in commands:
            raise RuntimeError("a defect with a secret in it")
        batch = Batch(commands, atomic, deliver)
        self.commands += commands
        batch.reply = [self._do(command) for command in commands]
        deliver(batch)
        return batch

    def settle(self, call: AnyCall) -> None:
        self.settled.append(call)

    def withdraw(self, call: AnyCall) -> None:
        if isinstance(call, Batch):
            self.withdrawn.append(b"a batch")
        elif call.stage is Stage.PARKED:
            assert isinstance(call.command, BQPop)
            self._parked[call.command.key].remove(call)
            self.withdrawn.append(call.command.key)
        call.stage = Stage.WITHDRAWN

    def shut_down(self) -> None:
        """Wakes all who wait, as the engine does."""
        self.accepting = False
        for call in [one for queue in self._parked.values() for one in queue]:
            self._answer(call, SHUTTING_DOWN)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()  # it works in whoever submits

    def close(self) -> None:
        self.shut_down()

    def _perform(self, call: Call) -> None:
        if call.stage is Stage.WITHDRAWN:
            return
        self.commands.append(call.command)
        if not isinstance(call.command, BQPop):
            self._answer(call, self._do(call.command))
        elif self._queues[call.command.key]:
            self._answer(call, Value(self._queues[call.command.key].popleft()))
        else:
            call.stage = Stage.PARKED
            self._parked[call.command.key].append(call)

    def _do(self, command: Command) -> Reply:
        match command:
            case Ping():
                return Value(b"PONG")
            case Set(key, value):
                self._keys[key] = value
                return Ok()
            case Get(key) if key in self._keys:
                return Value(self._keys[key])
            case Get():
                return Failure(Error.KEY_NOT_FOUND)
            case QPush(key, values):
                return self._push(key, values)
        return Failure(Error.WRONG_TYPE, "the fake does not know it")

    def _push(self, key: bytes, values: tuple[bytes, ...]) -> Reply:
        queue, parked = self._queues[key], self._parked[key]
        queue.extend(values)
        length = len(queue)
        while parked and queue:
            self._answer(parked.popleft(), Value(queue.popleft()))
        return Ok(length)

    def _answer(self, call: Call, reply: Reply) -> None:
        call.reply = reply
        call.stage = Stage.SETTLED
        call.deliver(call)


class FakeEngine(FakeFront):
    """As the embedded engine: it can fold its log."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = {"fsync": "always"}

    async def checkpoint(self) -> Checkpoint:
        return Checkpoint(segments=2, folded_bytes=3000, snapshot_bytes=100, duration_s=0.5)
