"""The way from the door to the application: a call of it, as ASGI has it, in this process.

What comes here was judged by the door: it is one well-formed request, whole. It needs no socket, no descriptor and no
file. So it is answered when descriptors have run out, and on a machine where nothing can be written.

The application is asked by one request more in each turn of the event loop. A crowd that asks at the same moment cannot
make a turn long, and requests that wait inside the application for something slow hold nobody up.
"""

from __future__ import annotations

import email.utils
import time
from http import HTTPStatus
from urllib.parse import unquote

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveEvent, ASGISendEvent, HTTPScope

from api.door.request import RequestHead

_HOP_BY_HOP = {b"connection", b"content-length", b"expect", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"}
"""Fields that are between a client and the door."""


class NoAnswer(Exception):
    """The application returned without an answer, which is a defect."""


class Relay:
    """The application, for the door.

    Args:
        app: to call; `HttpApp`.
    """

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app
        self._turnstile = trio.Lock()

    async def request(self, head: RequestHead, body: bytes) -> bytes:
        """Has the application answer a request; cancelling cancels that.

        Args:
            head: not refused.
            body: whole.

        Returns:
            Head and body of the response, for the client; it does not say whether the connection ends.

        Raises:
            NoAnswer: there was none.
        """
        async with self._turnstile:
            await trio.lowlevel.checkpoint()
        call = _Call(body)
        await self._app(_scope(head, len(body)), call.receive, call.send)
        return call.response(has_body=head.method != b"HEAD")


class _Call:
    """What the application is given, and what it answers."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._answer = bytearray()

    async def receive(self) -> ASGIReceiveEvent:
        """Gives the body; then nothing comes any more, for who leaves is seen by the door."""
        body, self._body = self._body, None
        if body is None:
            await trio.sleep_forever()
            raise AssertionError
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, event: ASGISendEvent) -> None:
        """Takes the answer."""
        if event["type"] == "http.response.start":
            self._status, self._headers = event["status"], list(event["headers"])
        elif event["type"] == "http.response.body":
            self._answer += event["body"]

    def response(self, *, has_body: bool) -> bytes:
        """The bytes of the answer. Whether the connection ends is not the application's to say."""
        if not self._status:
            raise NoAnswer
        line = b"HTTP/1.1 %d %b" % (self._status, HTTPStatus(self._status).phrase.encode())
        fields = [b"%b: %b" % field for field in self._headers if field[0].lower() != b"connection"]
        date = b"date: " + email.utils.formatdate(time.time(), usegmt=True).encode()
        return b"\r\n".join([line, *fields, date, b"", self._answer if has_body else b""])


def _scope(head: RequestHead, body_bytes: int) -> HTTPScope:
    path, _, query = head.target.partition(b"?")
    fields = [field for field in head.fields if field[0] not in _HOP_BY_HOP]
    if body_bytes:
        fields.append((b"content-length", b"%d" % body_bytes))
    return {  # type: ignore[typeddict-item]  # without `state`, which a server without a lifespan may leave out
        "type": "http",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "http_version": head.version,
        "method": head.method.decode("ascii"),
        "scheme": "http",
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": fields,
        "client": None,
        "server": None,
        "extensions": {},
    }
