"""Lines and receipts against a model of Redis, in every order of requests, answers, changes that are told, and time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.calls import Call
from engine.commands.queues import BQPop
from engine.redis.errors import Lost, NotSent
from engine.redis.lines import Lines
from engine.redis.receipts import Receipts
from engine.redis.request import Request
from engine.redis.scripts import ALONE
from engine.replies import NULL, Failure, Reply, Value
from tests.harness.effort import many
from tests.harness.fake_redis import MARK, FakeRouter, Keys

KEY = b"q"
AWAY = NotSent("away")


class Model:
    """One queue, one front, and Redis in between: requests that it has not read, answers that are on their way."""

    def __init__(self) -> None:
        self.router = FakeRouter()
        self.receipts = Receipts(b"front", self.router)
        self.lines = Lines(self.router, self.receipts, self._answered)
        self.redis = Keys()
        self.redis.changed = self._changed
        self.redis.held[KEY] = [MARK]
        self.answers: list[tuple[Request, Any]] = []
        self.untold = 0
        self.armed = False
        self.waiting: list[Call] = []
        self.replies: dict[Call, Reply] = {}
        self.order: list[Call] = []
        self.pushed: list[bytes] = []
        self.elsewhere: list[bytes] = []

    # What clients do

    def park(self, timeout_s: float | None) -> None:
        call = Call(BQPop(KEY, None if timeout_s is None else round(timeout_s * 1000)), lambda _call: None)
        self.waiting.append(call)
        self.lines.park(call)

    def leave(self, which: int) -> None:
        if self.waiting:
            call = self.waiting.pop(which % len(self.waiting))
            self.lines.leave(call)

    def _answered(self, call: Call, reply: Reply) -> None:
        assert call not in self.replies, "answered twice"
        self.waiting.remove(call)
        self.replies[call] = reply
        self.order.append(call)

    def withdraw_last(self) -> None:
        """Who was served last has left before the answer was handed over."""
        if self.order and self.order[-1].taken:
            call = self.order.pop()
            self.replies[call] = NULL
            self.receipts.take_back(call.taken)
            call.taken = []

    # What Redis does

    def push(self, count: int) -> None:
        values = [b"%d" % (len(self.pushed) + number) for number in range(count)]
        self.pushed += values
        self.redis.held[KEY] += values
        self._changed(KEY)

    def pop_elsewhere(self) -> None:
        if self.redis.queue(KEY):
            self.elsewhere.append(self.redis.held[KEY].pop(1))
            self._changed(KEY)

    def _changed(self, key: bytes) -> None:
        if key == KEY and self.armed:
            self.armed = False
            self.untold += 1

    def execute(self, count: int = 1) -> None:
        """Redis reads the oldest requests."""
        for request in self.router.posted[len(self.answers) :][:count]:
            words = [word if isinstance(word, bytes) else b"%d" % word for word in request.serialized_arguments]
            self.armed = self.armed or request.serialized_arguments[0] == ALONE["BQPOP"].digest
            self.answers.append((request, self.redis.do([request.name, *words])))

    def deliver(self) -> None:
        """The oldest answer arrives."""
        if self.answers:
            request, result = self.answers.pop(0)
            self.router.answer(request, result)

    def tell(self) -> None:
        """That the key has changed arrives."""
        if self.untold:
            self.untold -= 1
            self.lines.key_changed(KEY)

    def cut(self) -> None:
        """The connection breaks: whatever is on its way is lost, whether it was read or not."""
        if self.router.down is None:
            self.router.down = AWAY
            self.armed, self.untold = False, 0
            self.answers.clear()
            for request in list(self.router.posted):
                self.router.answer(request, Lost("broken"))

    def connect(self) -> None:
        if self.router.down is not None:
            self.router.down = None
            self.receipts.give_back()
            self.lines.try_all()

    # The end

    async def calm_down(self) -> None:
        self.connect()
        for _ in range(12):
            await trio.sleep(1)
            while self.router.posted or self.untold:
                self.execute()
                self.deliver()
                self.tell()
                await wait_all_tasks_blocked()

    def judge(self, *, in_order: bool) -> None:
        got = [reply.value for call in self.order if isinstance(reply := self.replies[call], Value) and reply.value]
        there = self.redis.queue(KEY)
        assert Counter(got) + Counter(there) + Counter(self.elsewhere) == Counter(self.pushed)
        assert not (there and self.waiting), "somebody waits though something is there"
        for call in self.waiting:
            assert isinstance(call.command, BQPop)
            assert call.command.timeout_ms is None, "somebody waits beyond the time"
        assert self.receipts.owed == 0
        assert len(self.lines) == len(self.waiting)
        if in_order:  # nothing came back, and nobody was refused
            assert not [reply for reply in self.replies.values() if isinstance(reply, Failure)]
            assert got == [value for value in self.pushed if value in set(got)]
            tickets = [call for call in self.order if isinstance(self.replies[call], Value) and call.taken]
            assert [call.taken[0].token for call in tickets] == sorted(call.taken[0].token for call in tickets)


ACTIONS: list[tuple[str, Callable[[Model], None]]] = [
    ("park", lambda model: model.park(None)),
    ("park 0", lambda model: model.park(0)),
    ("park 0.5", lambda model: model.park(0.5)),
    ("park 3", lambda model: model.park(3)),
    ("push", lambda model: model.push(1)),
    ("push 3", lambda model: model.push(3)),
    ("pop elsewhere", Model.pop_elsewhere),
    ("execute", Model.execute),
    ("execute all", lambda model: model.execute(9)),
    ("deliver", Model.deliver),
    ("tell", Model.tell),
    ("leave oldest", partial(Model.leave, which=0)),
    ("leave newest", partial(Model.leave, which=-1)),
    ("withdraw", Model.withdraw_last),
    ("cut", Model.cut),
    ("connect", Model.connect),
]
DISORDERLY = {"leave oldest", "leave newest", "withdraw", "cut", "connect"}
TURN, SHORT, LONG = "turn", "0.3 s", "2 s"
USUAL = ["park", "execute", "execute", "deliver", "deliver", "tell", "tell", "push"]
NAMES = [*USUAL, *(name for name, _ in ACTIONS), TURN, SHORT, LONG]
RUNS = many(1500)
ACTIONS_MAX = 25


async def play(names: list[str], in_order: bool) -> None:
    model = Model()
    actions = dict(ACTIONS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(model.lines.run)
        nursery.start_soon(model.receipts.run)
        for name in names:
            if name == TURN:
                await wait_all_tasks_blocked()
            elif name in (SHORT, LONG):
                await trio.sleep(0.3 if name == SHORT else 2)
            else:
                actions[name](model)
        await model.calm_down()
        nursery.cancel_scope.cancel()
    try:
        model.judge(in_order=in_order)
    except AssertionError as error:
        error.add_note(f"after {names}")
        raise


def runs(names: list[str], seed: int) -> Iterator[list[str]]:
    """What happens in each run, drawn by lot; the same every time."""
    rng = random.Random(seed)
    for _ in range(RUNS):
        yield rng.choices(names, k=rng.randrange(3, ACTIONS_MAX))


@pytest.mark.costly("1,500 runs")
def test_nothing_is_lost_nothing_comes_twice_and_nobody_waits_in_vain() -> None:
    """I6, E2, E4"""
    for names in runs(NAMES, 1):
        trio.run(play, names, False, clock=MockClock(autojump_threshold=0))


def test_first_come_first_served_and_first_in_first_out_while_nothing_breaks() -> None:
    """E1"""
    for names in runs([name for name in NAMES if name not in DISORDERLY], 2):
        trio.run(play, names, True, clock=MockClock(autojump_threshold=0))
