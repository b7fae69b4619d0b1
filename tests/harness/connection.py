"""One keep-alive connection of a trio client, on h11: fails at once and cleanly when the server is killed."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self

import h11
import trio


class ServerGone(Exception):
    """The connection ended before the answer did."""


class Connection:
    """A client's connection to `host:port`; use it with `async with`.

    Raises:
        ServerGone: from entering and from `post`, when there is no server, or none any more.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._stream: trio.SocketStream
        self._http = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> Self:
        try:
            self._stream = await trio.open_tcp_stream(*self._address)
        except OSError as error:
            raise ServerGone from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.aclose()

    async def post(self, body: Any, path: str = "/") -> tuple[int, Any]:
        """Sends a JSON body; returns status and decoded answer, None for an empty one."""
        content = json.dumps(body).encode()
        headers = [("Host", "localhost"), ("Content-Length", str(len(content)))]
        events = (h11.Request(method="POST", target=path, headers=headers), h11.Data(content), h11.EndOfMessage())
        try:
            await self._stream.send_all(b"".join(self._http.send(event) or b"" for event in events))
            return await self._answer()
        except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            raise ServerGone from error

    async def _answer(self) -> tuple[int, Any]:
        status, content = 0, bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some())
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                    self._http.start_next_cycle()
                return status, json.loads(content) if content else None
            else:
                raise ServerGone
