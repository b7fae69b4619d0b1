"""The mailbox: the command channel between those who submit and the actor.

It is a trio memory channel of lists. What is submitted before the actor looks goes in one list, which joins the others
in the channel's buffer: fifty clients that are served in one turn of the event loop share one send and one receive
(0.1 microseconds a command instead of 2). An empty list is a nudge: there is something to look at that is no command.
"""

from __future__ import annotations

from collections import deque

import trio

from engine.calls import AnyCall


class Mailbox:
    """Calls that wait for the actor.

    Args:
        calls_max: how many may wait at once.

    Attributes:
        backlog: those it has received; it takes them from the front.
        batched_commands: number of commands in batches that are not done.
    """

    def __init__(self, calls_max: int) -> None:
        self._calls_max = calls_max
        self.backlog: deque[AnyCall] = deque()
        self.batched_commands = 0
        self._send, self._receive = trio.open_memory_channel[list[AnyCall]](1)
        self._posted: list[AnyCall] | None = None  # the list that is in the channel

    def __len__(self) -> int:
        return len(self.backlog) + len(self._posted or ())

    def post(self, call: AnyCall) -> bool:
        """Sends a call to the actor; False when too many are waiting."""
        if self._posted is None:
            self.nudge()
        posted = self._posted
        assert posted is not None
        if len(posted) + len(self.backlog) >= self._calls_max:
            return False
        posted.append(call)
        return True

    def nudge(self) -> None:
        """Has `receive` return."""
        if self._posted is None:
            self._posted = []
            self._send.send_nowait(self._posted)

    async def receive(self) -> None:
        """Waits for calls or a nudge, and puts the calls into the backlog."""
        posted = await self._receive.receive()
        self._posted = None
        self.backlog += posted

    async def receive_what_is_there(self) -> None:
        """As `receive`, but does not wait; others have their turn."""
        if self._posted is not None:
            await self.receive()
        else:
            await trio.lowlevel.checkpoint()
