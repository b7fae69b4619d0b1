"""Answers become the bytes of responses."""

from __future__ import annotations

import email.utils
import time
from http import HTTPStatus

from api.dialects.answers import Answer
from engine.frozen import frozen

_EXTRA_FIELDS = {
    401: b"www-authenticate: Bearer\r\n",
    415: b"accept-encoding: identity\r\n",
    503: b"retry-after: 1\r\n",
}


@frozen
class Verbatim(Answer):
    """The answer to a client that does not speak HTTP.

    Attributes:
        verbatim: sent instead of a response.
    """

    verbatim: bytes = b""


class Responses:
    """Makes responses. How they begin is remembered by status: hundreds of answers a tick have it in common."""

    __slots__ = ("_begins",)

    def __init__(self) -> None:
        self._begins: dict[int, bytes] = {}

    def forget_date(self) -> None:
        """Has the next ones begin with the time that it is now; to be called once a second at least."""
        self._begins.clear()

    def render(self, answer: Answer, *, closes: bool) -> bytes:
        """Makes the bytes of a response.

        Args:
            answer: status and body.
            closes: no other answer follows it.
        """
        body = answer.body
        kind = answer.status if body else -answer.status
        begin = self._begins.get(kind)
        if begin is None:
            begin = self._begins[kind] = _begin_of(answer)
        if closes:
            begin += b"connection: close\r\n"
        if answer.allow:
            begin += b"allow: %b\r\n" % answer.allow.encode()
        return b"%bcontent-length: %d\r\n\r\n%b" % (begin, len(body), body)


def _begin_of(answer: Answer) -> bytes:
    """Status line, date, and the fields that belong to a status."""
    date = email.utils.formatdate(time.time(), usegmt=True).encode()
    line = b"HTTP/1.1 %d %b\r\ndate: %b\r\n" % (answer.status, HTTPStatus(answer.status).phrase.encode(), date)
    content_type = b"content-type: application/json\r\n" if answer.body else b""
    return line + content_type + _EXTRA_FIELDS.get(answer.status, b"")
