"""What the tests of the door have in common: a server with the real engine, under virtual time.

A commit takes as long as the test lets it: the clock moves only when the test moves it.
"""

from __future__ import annotations

from typing import NoReturn

import trio
import trio.testing
from trio.testing import MockClock

from api.server.http import serve_door
from tests.harness.http import Client, Server, http, listen, post, until
from tests.harness.world import World

GET_LIVEZ = http(b"GET /livez")
"""Answered by the door."""

GET_STATS = http(b"GET /stats")
"""Answered by the application, so an errand."""

COMMIT_S = 1.0
MIB = 1 << 20


class Stand(Server):
    """A server by the door, with the real engine on a fake disk, and small buffers in the kernel."""

    def __init__(self, nursery: trio.Nursery, world: World, clock: MockClock) -> None:
        super().__init__(nursery, serve_door, real=world.engine, listeners=[listen(send_buffer_bytes=4096)])
        self.world = world
        self._clock = clock

    @property
    def requests_open(self) -> int:
        return self.app.traffic()["requests_open"]

    async def connect(self, *, receive_buffer_bytes: int | None = 4096) -> Client:
        return await super().connect(receive_buffer_bytes=receive_buffer_bytes)

    async def pass_time(self, seconds: float) -> None:
        """Moves the clock, and lets everything happen that is due."""
        await trio.testing.wait_all_tasks_blocked(0.002)
        for _ in range(4):
            self._clock.jump(seconds / 4)
            await trio.testing.wait_all_tasks_blocked(0.002)

    async def run(self, *lines: str) -> None:
        """Has commands done by the engine directly, and their commits made."""
        for line in lines:
            job = self.world.spawn(line)
            while not job.done.is_set():
                await self.pass_time(COMMIT_S)

    def queue(self, key: bytes = b"q") -> list[bytes]:
        return list(self.world.state.queue(key) or ())

    def value(self, key: str) -> bytes | None:
        return next((entry[2] for entry in self.world.dump() if entry[1] == key.encode()), None)

    async def values_are(self, *values: bytes) -> None:
        """Waits until the queue `q` holds these values."""
        await until(lambda: self.queue() == list(values))


def line(command: str) -> bytes:
    return post(b'{"command": "%b"}' % command.encode())


def defect(*_: object, **__: object) -> NoReturn:
    raise ZeroDivisionError("a defect")
