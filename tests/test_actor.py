from __future__ import annotations

from engine.replies import Integer, Ok, Value
from tests.harness.world import World


async def test_a_value_survives_a_power_cut(world: World) -> None:
    assert await world.do("SET k v") == Ok()
    await world.cut_power()
    await world.start()
    assert await world.do("GET k") == Value(b"v")


async def test_a_push_wakes_the_oldest_waiter(world: World) -> None:
    first, second = await world.park("BQPOP q"), await world.park("BQPOP q")
    assert await world.do("QPUSH q a") == Ok(length=1)
    assert await first.wait() == Value(b"a")
    assert not second.done.is_set()
    assert await world.do("EXISTS q") == Integer(1)
