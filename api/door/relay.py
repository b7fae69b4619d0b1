"""The way from the door to the application: requests and answers over a private Unix socket, where Hypercorn listens.

What comes here was judged by the door: it is one well-formed request, whole. Each gets a connection of its own; the
application answers it and closes, as HTTP/1.0 has it. With HTTP/1.1 that would have to be asked for, by a field that
could be one too many.
"""

from __future__ import annotations

import os
import socket
import tempfile
from http import HTTPStatus
from pathlib import Path

import trio

from api.app.hypercorn_fixes import hypercorn_config
from api.door.request import RequestHead

_RECEIVE_BYTES = 64 * 1024

AT_ONCE_MAX = 64
"""Requests that the application works on at once; the others wait. Each takes two descriptors, and a Unix socket
refuses at once who comes when its backlog is full, which Hypercorn makes 100 long."""

_HOP_BY_HOP = {b"connection", b"content-length", b"expect", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"}
"""Fields that are between a client and the door."""

_CLOSE = b"connection: close"


class Relay:
    """The socket of the application. It has no name any more when a client comes, so a crash leaves none behind.

    Attributes:
        config: for Hypercorn, which has to serve the application with it.
    """

    def __init__(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        with tempfile.TemporaryDirectory(prefix="holdfast-") as directory:  # only its owner may enter
            path = str(Path(directory) / "http")
            listener.bind(path)
            self._socket = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self._path = f"/proc/self/fd/{self._socket}"
        self.config = hypercorn_config([listener.detach()])
        self._places = trio.CapacityLimiter(AT_ONCE_MAX)

    def close(self) -> None:
        """Gives the socket up."""
        os.close(self._socket)

    async def request(self, head: RequestHead, body: bytes) -> bytes:
        """Has the application answer a request.

        Args:
            head: not refused.
            body: whole.

        Returns:
            Head and body of the response, for the client; it does not say whether the connection ends.

        Raises:
            OSError: the application cannot be reached.
        """
        async with self._places, await trio.open_unix_socket(self._path) as stream:
            await stream.send_all(_request(head, body))
            response = bytearray()
            while data := await stream.receive_some(_RECEIVE_BYTES):
                response += data
        return _for_client(bytes(response))


def _request(head: RequestHead, body: bytes) -> bytes:
    fields = [b"%b: %b" % field for field in head.fields if field[0] not in _HOP_BY_HOP]
    line = b"%b %b HTTP/1.0" % (head.method, head.target)
    length = [b"content-length: %d" % len(body)] if body else []
    return b"\r\n".join([line, *fields, *length, b"", body])


def _for_client(response: bytes) -> bytes:
    """Takes out that the application's connection ends, and says the status in words, which h11 leaves out."""
    head, end, body = response.partition(b"\r\n\r\n")
    if not end:
        raise ConnectionError("the application gave no answer")
    line, *fields = [line for line in head.split(b"\r\n") if line.lower() != _CLOSE]
    status = HTTPStatus(int(line.split()[1]))
    return b"\r\n".join([b"HTTP/1.1 %d %b" % (status, status.phrase.encode()), *fields, b"", body])
