"""Thousands that leave or are turned away together: some at a time, and what was popped is back in order (E5, E8)."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from engine.calls import Call
from engine.commands.queues import BQPop, QPop
from engine.embedded.effects import Effects
from engine.embedded.pops import RETURNED_MAX, TOLD_MAX
from engine.replies import Error, Failure, Value
from tests.harness.world import World

MANY = 1_000


class _Turns(trio.abc.Instrument):
    number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


@pytest.fixture
async def turns() -> _Turns:
    turns = _Turns()
    trio.lowlevel.add_instrument(turns)
    return turns


async def test_e8_those_who_wait_are_turned_away_some_in_a_turn(world: World, turns: _Turns) -> None:
    """E8: ten thousand at once held the event loop for 0.2 s."""
    told: Counter[int] = Counter()

    def deliver(call: Call) -> None:
        assert isinstance(call.reply, Failure)
        assert call.reply.error is Error.UNAVAILABLE
        told[turns.number] += 1

    for number in range(MANY):
        world.engine.submit_nowait(BQPop(b"q%d" % (number % 3)), deliver)
    await world.settle()
    world.engine.shut_down()
    await world.settle()
    assert told.total() == MANY
    assert max(told.values()) <= TOLD_MAX


async def test_e5_many_values_go_back_some_in_a_turn_and_nobody_pops_in_between(
    world: World, turns: _Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5: a batch whose client leaves can have popped thousands."""
    values = [b"%d" % number for number in range(MANY)]
    await world.do("QPUSH q " + " ".join(map(bytes.decode, values)))
    batch = world.engine.submit_many_nowait([QPop(b"q")] * MANY, False, lambda _: None)
    while world.state.queue(b"q"):
        await trio.lowlevel.checkpoint()
    returned: Counter[int] = Counter()
    apply = Effects.apply

    def noting(effects: Effects, *args: object) -> None:
        returned[turns.number] += 1
        apply(effects, *args)  # type: ignore[arg-type]  # as they come

    popped: list[Call] = []
    with monkeypatch.context() as patch:
        patch.setattr(Effects, "apply", noting)
        world.engine.withdraw(batch)
        while not returned:
            await trio.lowlevel.checkpoint()
        world.engine.submit_nowait(QPop(b"q"), popped.append)
        await world.settle()
    assert sum(returned.values()) >= MANY
    assert max(returned.values()) <= RETURNED_MAX + 1
    assert [call.reply for call in popped] == [Value(values[-1])]
    assert list(world.state.queue(b"q") or ()) == values[:-1]
