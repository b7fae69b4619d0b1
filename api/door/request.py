"""Requests as the door reads them: heads by httptools (llhttp, strict), and bodies as they come. Pure.

A head is judged by its bytes alone, so a judgement can be remembered by them: `RequestHead` is immutable, and the same
for every connection. Where a head ends is found here, and only its bytes go to the parser: parser and door cannot
disagree about what belongs to which request, which is what smuggling lives on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote

import httptools
from hypercorn.typing import HTTPScope

from api.dialects.answers import Answer, failure
from api.door.responses import Verbatim
from api.http.body import HeldBody
from api.http.chunks import Chunks
from api.http.head import ERRORS, INVALID, OTHER_CODING, TWO_LENGTHS, UNPARSABLE, BadHead, Head, check_bytes
from api.http.judge import Judge
from api.http.probes import PROBES
from api.http.service import PATHS

CHUNKS_AT_ONCE_MAX = 256
"""Chunks, and lines beside them, that are read in one go: half a millisecond, or two for the slow kinds."""

_OWN_PATHS = {*PATHS, *PROBES}

_METHOD = re.compile(rb"[^ ]+")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """One head and what follows from it.

    Attributes:
        method: as sent.
        target: as sent.
        version: `1.0` or `1.1`.
        fields: names in lower case, and values.
        path: one of `PATHS` or `PROBES`, which the door answers itself; None for the application.
        length: of the body in bytes; None when it comes in chunks.
        keep_alive: whether another request may follow.
        expects_continue: the client waits for `100 Continue` before it sends the body.
        refusal: the answer, for a request that is refused by its head.
    """

    method: bytes
    target: bytes
    version: str
    fields: tuple[tuple[bytes, bytes], ...]
    path: str | None
    length: int | None
    keep_alive: bool
    expects_continue: bool
    refusal: Answer | None


def read_head(data: bytes, judge: Judge) -> RequestHead:
    """Parses and judges a head.

    Args:
        data: from its first byte to the empty line, that included.
        judge: says what is refused.

    Returns:
        The head; what cannot be trusted is a refusal that keeps no connection.
    """
    try:
        check_bytes(data)
        return _judge(_Parser(data), judge)
    except BadHead as error:
        return _refused(refusal_of(error))


def refusal_of(error: BadHead) -> Answer:
    """The answer to bytes that are no head."""
    answer = failure(error.status, ERRORS.get(error.status, INVALID), error.detail)
    return Verbatim(answer.status, answer.body, verbatim=error.verbatim) if error.verbatim else answer


def _refused(refusal: Answer, method: bytes = b"") -> RequestHead:
    return RequestHead(method, b"", "1.1", (), None, 0, False, False, refusal)


class _Parser:
    """What httptools says of one head. BadHead when it is none."""

    def __init__(self, data: bytes) -> None:
        method = _METHOD.match(data)
        assert method is not None, "check_bytes has seen it"
        self.method = method.group()
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False
        # llhttp knows fixed lists of methods and versions, and reads CONNECT in another way; the judge knows better.
        version_end = data.find(b"\r\n")
        old = data[version_end - 1 : version_end] == b"0"
        line = b"POST%b%b" % (data[method.end() : version_end - 1], b"0" if old else b"1")
        rest = line + data[version_end:]
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(rest)
        except httptools.HttpParserUpgrade:
            pass  # a server may ignore it, and this one does: no h2c, no websocket
        except httptools.HttpParserError as error:
            if not self.complete:  # else it complains of a transfer coding, and so do we
                raise _complaint(data, str(error)) from None
        if not self.complete:
            raise BadHead(UNPARSABLE)
        self.version: str = parser.get_http_version()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


def _complaint(data: bytes, parsers: str) -> BadHead:
    if "Transfer-Encoding" not in parsers:
        return BadHead(UNPARSABLE)
    return BadHead(TWO_LENGTHS) if b"\ncontent-length:" in data.lower() else BadHead(OTHER_CODING, 501)


def _judge(parsed: _Parser, judge: Judge) -> RequestHead:
    path, _, query = parsed.target.partition(b"?")
    scope = cast(
        HTTPScope,
        {
            "method": parsed.method.decode("ascii"),
            "http_version": parsed.version,
            "path": unquote(path.decode("ascii")),
            "query_string": query,
            "headers": parsed.fields,
        },
    )
    tokens: list[bytes] = []
    coding = b""
    expects: list[bytes] = []
    for name, value in parsed.fields:
        if name == b"connection":
            tokens += _tokens(value)
        elif name == b"transfer-encoding":
            coding = coding + b"," + value.lower() if coding else value.lower()
        elif name == b"expect":
            expects += _tokens(value)
    head = Head(scope)
    if coding and coding != b"chunked":
        return _refused(failure(501, INVALID, OTHER_CODING), parsed.method)
    fault = head.fault()
    if fault is not None:
        return _refused(failure(*fault), parsed.method)
    refusal = judge.refusal(scope, head)
    return RequestHead(
        method=parsed.method,
        target=parsed.target,
        version=parsed.version,
        fields=tuple(parsed.fields),
        path=scope["path"] if scope["path"] in _OWN_PATHS else None,
        length=head.length if not coding else None,
        keep_alive=parsed.version == "1.1" and b"close" not in tokens,
        expects_continue=b"100-continue" in expects and parsed.version == "1.1",
        refusal=refusal,
    )


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip() for token in value.lower().split(b",")]


class IncomingBody:
    """A body that is still coming; thrown away when its head is refused.

    Attributes:
        head: of its request.
        data: what has come.
        held: its share of the budget.
        is_waited_for: the client sends it when it gets `100 Continue`.
    """

    __slots__ = ("_chunks", "_left", "data", "head", "held", "is_waited_for")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self._left = head.length
        self._chunks = Chunks() if head.length is None else None
        self.data = bytearray()
        self.held = HeldBody()
        self.is_waited_for = False

    @property
    def complete(self) -> bool:
        """Whether all of it is here."""
        return self._left == 0 if self._chunks is None else self._chunks.complete

    def take(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Takes what belongs to the body, of chunks as many as are read in one go. Else it is as `Chunks.take`."""
        if self._chunks is not None:
            return self._chunks.take(data, at, CHUNKS_AT_ONCE_MAX)
        assert self._left is not None
        end = min(len(data), at + self._left)
        self._left -= end - at
        return data[at:end], end
