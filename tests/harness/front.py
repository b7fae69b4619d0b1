"""A front under test: the engine on a Redis of tests/harness/redis.py, and clients that keep the books under load.

async def test_a_value_is_read_back(nursery, redis_cluster):
    front = await start_front(nursery, redis_cluster.url)
    assert await front.do("SET k v") == OK
    front.close()

A crowd is twenty clients of one front or several. What is asked of them afterwards holds whatever has happened
meanwhile, to the front or to Redis:

- What was acknowledged is there; what was refused because it was never sent is not; what is not known happened once,
  or not at all.
- Every value of a queue was delivered once, or is in its queue.
- Of a unit all is there, or nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import trio

from engine.calls import Command
from engine.commands.table import parse
from engine.limits import Limits
from engine.redis.endpoint import parse_endpoint
from engine.redis.engine import ClusterEngine
from engine.redis.node import ANSWER_TIMEOUT_S
from engine.replies import Error, Failure, Ok, Refused, Reply, Value
from tests.conformance.store import Client, content_of
from tests.harness.redis import RedisNode
from tests.harness.waiting import WITHIN_S, until
from tests.harness.world import BatchJob, Job

POLL_S = 0.01

QUEUES = 6
BLOCK = "0.3"
"""Timeout of blocking pops, in seconds."""

PAUSE_S = 0.002
"""A client thinks so long between two requests, on average: enough happens, and the processor is not all theirs."""


class Front:
    """A front, and its clients.

    Args:
        nursery: where the clients run.
        engine: started.
        limits: of the engine.
    """

    def __init__(self, nursery: trio.Nursery, engine: ClusterEngine, limits: Limits) -> None:
        self.engine = engine
        self._nursery = nursery
        self._limits = limits
        self._submitted = 0

    async def do(self, line: str) -> Reply:
        """Has a command done, words split at spaces."""
        return await self.engine.submit(self._parse(line))

    async def do_many(self, *lines: str, atomic: bool = False) -> list[Reply] | Refused:
        """Has a batch done."""
        return await self.engine.submit_many([self._parse(line) for line in lines], atomic=atomic)

    def spawn(self, line: str) -> Job:
        """Submits a command as a client of its own."""
        job = Job(self._parse(line))
        self._nursery.start_soon(self._run, job, self.engine.submit)
        return job

    def spawn_many(self, *lines: str, atomic: bool = False) -> BatchJob:
        """Submits a batch, like `spawn`."""
        job = BatchJob([self._parse(line) for line in lines])
        self._nursery.start_soon(self._run, job, partial(self.engine.submit_many, atomic=atomic))
        return job

    def submit(self, *lines: str) -> Client:
        """Submits commands for a client that takes its answers, or leaves without them, when it says so."""
        client = Client(self.engine)
        for line in lines:
            client.calls.append(self.engine.submit_nowait(self._parse(line), client.deliver))
        return client

    async def park(self, *lines: str) -> list[Job]:
        """Submits commands that wait, and returns when all of them do, and Redis has said that there is nothing."""
        jobs = [self.spawn(line) for line in lines]
        before = self.engine.statistics().waiters
        await until(lambda: self.engine.statistics().waiters == before + len(jobs) and not self.engine._lines.trying)
        return jobs

    async def eventually(self, line: str) -> Reply:
        """Has a command done again and again, until it is not `unavailable`."""
        with trio.fail_after(WITHIN_S):
            while unavailable(reply := await self.do(line)):  # noqa: ASYNC110  # the other side has no event for us
                await trio.sleep(POLL_S)
        return reply

    async def until_unavailable(self, line: str) -> Failure:
        """Has a command done again and again, until it is `unavailable`."""
        with trio.fail_after(WITHIN_S):
            while not unavailable(reply := await self.do(line)):  # noqa: ASYNC110  # likewise
                await trio.sleep(POLL_S)
        assert isinstance(reply, Failure)
        return reply

    async def until_ready(self) -> None:
        """Returns when every key can be reached."""
        await until(lambda: isinstance(self.engine.readiness(), dict), lambda: str(self.engine.readiness()))

    async def until_a_master_is_down(self) -> None:
        """Returns when the connection to a master is lost."""
        await until(lambda: self.engine.statistics().masters_up < self.engine.statistics().masters)

    async def until_masters_are_up(self) -> None:
        """Returns when there is a connection to every master, with or without the replicas that writes need."""
        statistics = self.engine.statistics
        await until(lambda: statistics().masters_up == statistics().masters, lambda: str(statistics()))

    @property
    def owed(self) -> int:
        """How many values are on their way back."""
        return self.engine.statistics().owed_values

    def close(self) -> None:
        """Has the engine finish."""
        self.engine.close()

    async def _run(self, job: Job | BatchJob, submit: Callable[..., Awaitable[Any]]) -> None:
        self._submitted += 1
        await job.run(submit, self._submitted)

    def _parse(self, line: str) -> Command:
        return parse(line.encode().split(b" "), self._limits)


async def start_front(
    nursery: trio.Nursery,
    url: str,
    *,
    limits: Limits | None = None,
    min_replicas: int = 0,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> Front:
    """Starts a front; it raises what `ClusterEngine.run` raises.

    Args:
        nursery: where it runs, and its clients.
        url: for `--engine`.
        limits: waiters, mailbox, answers.
        min_replicas: see `ClusterEngine`.
        answer_timeout_s: likewise.
    """
    limits = limits or Limits()
    endpoint = parse_endpoint(url)
    engine = ClusterEngine(endpoint, limits, min_replicas=min_replicas, answer_timeout_s=answer_timeout_s)
    await nursery.start(engine.run)
    return Front(nursery, engine, limits)


def unavailable(reply: Reply | list[Reply] | Refused) -> bool:
    """Whether a reply is `unavailable`, be it of a unit."""
    failure = reply.failure if isinstance(reply, Refused) else reply
    return isinstance(failure, Failure) and failure.error is Error.UNAVAILABLE


class Outcome(Enum):
    """What a client knows of a write."""

    DONE = "done"
    NOT_DONE = "not done"
    UNKNOWN = "unknown"


def outcome_of(reply: Reply | list[Reply] | Refused) -> Outcome:
    """What the answer to a write says about it; only `unavailable` leaves it open."""
    if not unavailable(reply):
        return Outcome.DONE
    failure = reply.failure if isinstance(reply, Refused) else reply
    assert isinstance(failure, Failure)
    in_doubt = "may have been done" in failure.detail or failure.detail.startswith("done")
    return Outcome.UNKNOWN if in_doubt else Outcome.NOT_DONE


@dataclass
class Written:
    """What a client knows of something that only it writes, with numbers that grow.

    Attributes:
        done: the last number that was acknowledged.
        unknown: those tried since.
    """

    done: int = 0
    unknown: list[int] = field(default_factory=list)

    def enter(self, number: int, outcome: Outcome) -> None:
        """Enters what became of a write."""
        if outcome is Outcome.DONE:
            self.done, self.unknown = number, []
        elif outcome is Outcome.UNKNOWN:
            self.unknown.append(number)

    def allows(self, found: int) -> bool:
        """Whether this may be found."""
        return found == self.done or found in self.unknown


class Crowd:
    """Clients that do everything at once: single commands, pipelines, units, pops that wait.

    Args:
        fronts: the clients are shared among them.
        seed: what they do follows from it.
        clients: how many.

    Attributes:
        answers: counted by kind.
        faults: what must never be answered.
    """

    def __init__(self, fronts: Sequence[Front], seed: int, *, clients: int = 20) -> None:
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self._fronts = fronts
        self._pushed: dict[bytes, tuple[str, Outcome]] = {}
        self._delivered: Counter[bytes] = Counter()
        self._clients = [_Client(self, number, random.Random(f"{seed}/{number}")) for number in range(clients)]
        self._over = False
        self._ended = trio.Event()

    def queue(self, number: int) -> str:
        """The name of one of the queues."""
        return f"queue{number}"

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until `stop`; start it with `nursery.start`."""
        async with trio.open_nursery() as nursery:
            for number, client in enumerate(self._clients):
                nursery.start_soon(client.run, self._fronts[number % len(self._fronts)])
            task_status.started()
        self._ended.set()

    async def stop(self) -> None:
        """Returns when all clients have their last answer."""
        self._over = True
        await self._ended.wait()

    async def answered(self, count: int) -> None:
        """Returns when so many more commands have succeeded."""
        target = self.answers["ok"] + count
        await until(lambda: self.answers["ok"] >= target, lambda: f"only {self.answers}")

    async def check(self, nodes: Sequence[RedisNode]) -> None:
        """Holds what Redis has against what the clients know, as soon as what goes back is back.

        Args:
            nodes: the masters.
        """
        assert not self.faults, self.faults
        complaint = ""

        def balanced() -> bool:
            nonlocal complaint
            complaint = self._complaint(content_of(nodes))
            return not complaint and not any(front.owed for front in self._fronts)

        await until(balanced, lambda: complaint or f"owed: {[front.owed for front in self._fronts]}")

    def _complaint(self, content: dict[bytes, tuple[object, ...]]) -> str:
        """What does not fit, empty if everything does."""
        found = Counter(self._delivered)
        for number in range(QUEUES):
            found.update(content.get(self.queue(number).encode(), ("queue",))[1:])  # type: ignore[arg-type]
        wrong = [f"{value!r} is nobody's" for value in found if value not in self._pushed]
        for value, (queue, outcome) in self._pushed.items():
            right = {Outcome.DONE: (1,), Outcome.NOT_DONE: (0,), Outcome.UNKNOWN: (0, 1)}[outcome]
            if found[value] not in right:
                delivered = self._delivered[value]
                wrong.append(f"{value!r} of {queue} {outcome}: {found[value]} times, delivered {delivered} times")
        for client in self._clients:
            wrong += client.complaints(content)
        return "\n".join(wrong[:20])

    # For the clients

    @property
    def over(self) -> bool:
        return self._over

    def enter(self, line: str, reply: Reply | Refused) -> None:
        """Counts an answer."""
        failure = reply.failure if isinstance(reply, Refused) else reply
        if isinstance(failure, Failure):
            self.answers[failure.error.value] += 1
            if failure.error not in (Error.UNAVAILABLE, Error.QUEUE_IS_EMPTY, Error.KEY_NOT_FOUND):
                self.faults.append(f"{line}: {failure}")
        else:
            self.answers["ok"] += 1

    def pushed(self, queue: str, values: Sequence[str], reply: Reply | Refused) -> None:
        """Enters a push."""
        for value in values:
            self._pushed[value.encode()] = (queue, outcome_of(reply))

    def popped(self, reply: Reply) -> None:
        """Enters a pop."""
        if isinstance(reply, Value) and reply.value is not None:
            self._delivered[reply.value] += 1


class _Client:
    """One client; what it writes has its number, and grows."""

    def __init__(self, crowd: Crowd, number: int, rng: random.Random) -> None:
        self._crowd = crowd
        self._number = number
        self._random = rng
        self._last = 0
        self._key, self._pair = Written(), Written()
        name = f"client{number}"
        self._name, self._left, self._right = name, f"{{{name}}}left", f"{{{name}}}right"

    async def run(self, front: Front) -> None:
        moves = (self._set, self._get, self._push, self._push, self._pop, self._bpop, self._pipeline, self._unit)
        while not self._crowd.over:
            await self._random.choice(moves)(front)
            await trio.sleep(self._random.random() * 2 * PAUSE_S)

    def complaints(self, content: dict[bytes, tuple[object, ...]]) -> list[str]:
        """What of its own keys is not as it has to be."""
        key, left, right = (_number(content.get(name.encode())) for name in (self._name, self._left, self._right))
        wrong = [] if self._key.allows(key) else [f"{self._name} is {key}, not {self._key}"]
        if left != right or not self._pair.allows(left):
            wrong.append(f"the pair of {self._name} is {left}, {right}, not {self._pair}")
        return wrong

    async def _do(self, front: Front, line: str) -> Reply:
        reply = await front.do(line)
        self._crowd.enter(line, reply)
        return reply

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _new_values(self) -> list[str]:
        return [f"{self._name}.{self._next()}" for _ in range(self._random.randint(1, 4))]

    def _queue(self) -> str:
        return self._crowd.queue(self._random.randrange(QUEUES))

    async def _set(self, front: Front) -> None:
        number = self._next()
        self._key.enter(number, outcome_of(await self._do(front, f"SET {self._name} {number}")))

    async def _get(self, front: Front) -> None:
        reply = await self._do(front, f"GET {self._name}")
        if not unavailable(reply):
            found = int(reply.value or b"0") if isinstance(reply, Value) else 0
            if not self._key.allows(found):
                self._crowd.faults.append(f"{self._name} was {found}, not {self._key}")

    async def _push(self, front: Front) -> None:
        queue, values = self._queue(), self._new_values()
        self._crowd.pushed(queue, values, await self._do(front, f"QPUSH {queue} {' '.join(values)}"))

    async def _pop(self, front: Front) -> None:
        self._crowd.popped(await self._do(front, f"QPOP {self._queue()}"))

    async def _bpop(self, front: Front) -> None:
        self._crowd.popped(await self._do(front, f"BQPOP {self._queue()} {BLOCK}"))

    async def _pipeline(self, front: Front) -> None:
        number, queue, values = self._next(), self._queue(), self._new_values()
        push = f"QPUSH {queue} {' '.join(values)}"
        lines = (f"SET {self._name} {number}", push, f"QPOP {self._queue()}", f"BQPOP {self._queue()}", "PING")
        replies = await front.do_many(*lines)
        assert isinstance(replies, list), replies
        for line, reply in zip(lines, replies, strict=True):
            self._crowd.enter(line, reply)
        self._key.enter(number, outcome_of(replies[0]))
        self._crowd.pushed(queue, values, replies[1])
        self._crowd.popped(replies[2])
        self._crowd.popped(replies[3])

    async def _unit(self, front: Front) -> None:
        if self._random.random() < 0.5:
            await self._unit_of_keys(front)
        else:
            await self._unit_on_a_queue(front)

    async def _unit_on_a_queue(self, front: Front) -> None:
        queue, values = self._queue(), self._new_values()
        lines = (f"QPUSH {queue} {' '.join(values)}", f"BQPOP {queue}", f"EXISTS {{{queue}}}none")
        replies = await front.do_many(*lines, atomic=True)
        self._crowd.enter(" & ".join(lines), replies if isinstance(replies, Refused) else Ok())
        self._crowd.pushed(queue, values, replies if isinstance(replies, Refused) else Ok())
        if isinstance(replies, list):
            self._crowd.popped(replies[1])

    async def _unit_of_keys(self, front: Front) -> None:
        number = self._next()
        lines = (f"GET {self._right}", f"SET {self._left} {number}", f"SET {self._right} {number}")
        replies = await front.do_many(*lines, atomic=True)
        self._crowd.enter(" & ".join(lines), replies if isinstance(replies, Refused) else Ok())
        self._pair.enter(number, outcome_of(replies if isinstance(replies, Refused) else Ok()))


def _number(held: tuple[object, ...] | None) -> int:
    if held is None:
        return 0
    assert isinstance(held[1], bytes)
    return int(held[1])
