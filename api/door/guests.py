"""Clients beyond those that descriptors are there for: their probes are answered, everything else is 503.

Whoever looks whether the server is well comes on a connection of its own, and must not take it for dead because others
have all descriptors. So some are kept for guests. A guest has one request, and a second to send it; the oldest one
gives way to the next. A task each will do, for they are few.
"""

from __future__ import annotations

import logging
import socket

import trio

from api.dialects.answers import Answer, failure
from api.door.request import RequestHead
from api.door.shared import Shared
from api.http.head import HEAD_BYTES_MAX
from api.http.probes import PROBES
from api.http.sockets import peer_of
from engine.replies import Error

GUESTS_MAX = 32
"""At once."""

GUEST_S = 1.0
"""How long one stays."""

_HEAD_END = b"\r\n\r\n"

_CROWDED = failure(503, Error.UNAVAILABLE.value, "too many connections: the server has no descriptors for more")

_logger = logging.getLogger("holdfast.http")


class Guests:
    """Those who are there.

    Args:
        shared: its judgement of heads, its probes and its responses are used; its nursery has the tasks.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._stays: dict[trio.CancelScope, None] = {}  # the oldest first

    def admit(self, client: socket.socket, count_max: int) -> None:
        """Has a client served.

        Args:
            client: accepted, not blocking; closed in the end.
            count_max: how many may be there at once.
        """
        _logger.error("too many connections: the descriptors have run out, new clients are answered 503")
        while len(self._stays) >= count_max:
            oldest = next(iter(self._stays))
            del self._stays[oldest]
            oldest.cancel()
        stay = trio.CancelScope()
        self._stays[stay] = None
        self._shared.nursery.start_soon(self._serve, stay, client)

    async def _serve(self, stay: trio.CancelScope, client: socket.socket) -> None:
        with stay, trio.move_on_after(GUEST_S):
            try:
                async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
                    await self._answer(stream)
            except (trio.BrokenResourceError, OSError):
                pass  # it is gone
        self._stays.pop(stay, None)
        client.close()

    async def _answer(self, stream: trio.SocketStream) -> None:
        data = b""
        while _HEAD_END not in data and len(data) <= HEAD_BYTES_MAX:
            piece = await stream.receive_some()
            if not piece:
                return
            data += piece
        head = self._shared.read_head(data.partition(_HEAD_END)[0] + _HEAD_END)
        answer = self._answer_to(head)
        if answer.status >= 400:
            self._shared.refusals.note(answer, lambda: peer_of(stream.socket))
        response = self._shared.responses.render(answer, closes=True)
        await stream.send_all(response.removesuffix(answer.body) if head.method == b"HEAD" else response)
        await stream.send_eof()
        while await stream.receive_some():  # closing over bytes that were not read takes the answer back
            pass

    def _answer_to(self, head: RequestHead) -> Answer:
        if head.refusal is not None:
            return head.refusal
        return self._shared.probes.answer(head.path) if head.path in PROBES else _CROWDED
