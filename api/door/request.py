"""Requests as the door reads them: heads by httptools (llhttp, strict), and bodies, whole or in chunks. Pure.

A head is judged by its bytes alone, so a judgement can be remembered by them: `RequestHead` is immutable, and the same
for every connection. Where a head ends is found here, and only its bytes go to the parser: parser and door cannot
disagree about what belongs to which request, which is what smuggling lives on.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote

import httptools
from hypercorn.typing import HTTPScope

from api.dialects.answers import Answer, failure
from api.http.access import Access
from api.http.body import HeldBody
from api.http.head import INVALID, OTHER_CODING, TWO_LENGTHS, UNPARSABLE, BadHead, Head, check_bytes
from api.http.probes import PROBE_METHODS, PROBES
from api.http.service import PATHS
from engine.limits import KIB
from engine.replies import Error

CHUNK_BYTES_MAX = 1 * KIB
"""What the extensions of all chunks and all trailers together may take."""

CHUNKS_AT_ONCE_MAX = 256
"""Chunks, and lines beside them, that are read in one go: half a millisecond, or two for the slow kinds."""

_SMALL_LINE_BYTES = 32
"""A line up to this length is no part of that: the size of a chunk and what ends it."""

_ERRORS = {414: "uri too long", 431: "headers too large"}

_METHOD = re.compile(rb"[^ ]+")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?[ \t]*\r\n")
_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """One head and what follows from it.

    Attributes:
        method: as sent.
        target: as sent.
        version: `1.0` or `1.1`.
        fields: names in lower case, and values.
        path: what the door answers itself: one of `PATHS` for a POST to it, one of `PROBES` for a GET or HEAD of it.
            None for the application.
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


def read_head(data: bytes, access: Access, body_bytes_max: int) -> RequestHead:
    """Parses and judges a head.

    Args:
        data: from its first byte to the empty line, that included.
        access: who may speak to the server.
        body_bytes_max: longest body that is taken.

    Returns:
        The head; what cannot be trusted is a refusal that keeps no connection.
    """
    try:
        check_bytes(data)
        return _judge(_Parser(data), access, body_bytes_max)
    except BadHead as error:
        return _refused(refusal_of(error))


def refusal_of(error: BadHead) -> Answer:
    """The answer to bytes that are no head."""
    return failure(error.status, _ERRORS.get(error.status, INVALID), error.detail)


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
        # llhttp knows a fixed list of methods, and reads CONNECT in another way; the application knows better.
        rest = b"POST" + data[method.end() :]
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


def _judge(parsed: _Parser, access: Access, body_bytes_max: int) -> RequestHead:
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
    refused = access.check(scope["path"], parsed.fields)
    refusal = None if refused is None else failure(refused.status, refused.error, refused.detail)
    if refusal is None and head.length is not None and head.length > body_bytes_max:
        refusal = too_large(body_bytes_max)
    return RequestHead(
        method=parsed.method,
        target=parsed.target,
        version=parsed.version,
        fields=tuple(parsed.fields),
        path=scope["path"] if _is_for_the_door(parsed.method, scope["path"]) else None,
        length=head.length if not coding else None,
        keep_alive=parsed.version == "1.1" and b"close" not in tokens,
        expects_continue=b"100-continue" in expects and parsed.version == "1.1",
        refusal=refusal,
    )


def _is_for_the_door(method: bytes, path: str) -> bool:
    return (method == b"POST" and path in PATHS) or (method in PROBE_METHODS and path in PROBES)


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip() for token in value.lower().split(b",")]


def too_large(body_bytes_max: int) -> Answer:
    """The answer to a body over its limit."""
    return failure(413, Error.TOO_LARGE.value, f"a body has at most {body_bytes_max} bytes")


class BadBody(Exception):
    """Bytes that are no chunks."""


class Chunks:
    """A body in chunks, decoded as it comes.

    Attributes:
        complete: whether the last chunk and the trailers are here.
    """

    __slots__ = ("_begun", "_expect", "_left", "_spare_bytes", "complete")

    def __init__(self) -> None:
        self.complete = False
        self._expect = Chunks._take_size  # takes the next line; no bound method: it would be a cycle of references
        self._begun = b""  # of that line
        self._left = 0  # of the chunk
        self._spare_bytes = CHUNK_BYTES_MAX

    def take(self, data: bytes, at: int, at_once_max: int = sys.maxsize) -> tuple[bytes, int]:
        """Decodes bytes up to the end of the body.

        Args:
            data: as received.
            at: where the body goes on in it.
            at_once_max: chunks, and lines beside them, to stop behind.

        Returns:
            What they hold, and the position behind the last byte that was taken.

        Raises:
            BadBody: not chunks, or extensions and trailers over their limit.
        """
        pieces: list[bytes] = []
        lines = 0
        while at < len(data) and not self.complete and lines + len(pieces) < at_once_max:
            if self._expect is Chunks._take_size and not self._begun:
                at = _take_plain(data, at, pieces, at_once_max)
            if self._left:
                pieces.append(data[at : at + self._left])
                at += len(pieces[-1])
                self._left -= len(pieces[-1])
            elif at < len(data):
                at = self._take_line(data, at)
                lines += 1
        return b"".join(pieces), at

    def _take_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        line = self._begun + data[at : end or len(data)]
        if len(line) > self._spare_bytes + _SMALL_LINE_BYTES:
            raise BadBody
        if not end:
            begins = _LINE_BEGINS.get(self._expect)
            if begins is not None and not begins.match(line):
                raise BadBody  # now, not when the line ends or the client gives up
            self._begun = line
            return len(data)
        self._begun = b""
        self._spare_bytes -= max(0, len(line) - _SMALL_LINE_BYTES)
        self._expect(self, line)
        return end

    def _take_size(self, line: bytes) -> None:
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise BadBody
        self._left = int(match[1], 16)
        self._expect = Chunks._take_end if self._left else Chunks._take_trailer

    def _take_end(self, line: bytes) -> None:
        if line != b"\r\n":
            raise BadBody
        self._expect = Chunks._take_size

    def _take_trailer(self, line: bytes) -> None:
        self.complete = line == b"\r\n"
        if not self.complete and not _TRAILER.fullmatch(line):
            raise BadBody


_LINE_BEGINS = {
    Chunks._take_size: re.compile(rb"[0-9A-Fa-f]{1,16}(?:[; \t\r]|$)"),
    Chunks._take_end: re.compile(rb"\r$"),
}


def _take_plain(data: bytes, at: int, pieces: list[bytes], pieces_max: int) -> int:
    """Takes chunks that are here whole, without extensions: 64 KiB of the shortest took 100 ms line by line, 9 so."""
    while len(pieces) < pieces_max and (size := _PLAIN_SIZE.match(data, at)) is not None:
        begin = size.end()
        end = begin + int(size[1], 16)
        if end == begin or data[end : end + 2] != b"\r\n":
            break
        pieces.append(data[begin:end])
        at = end + 2
    return at


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
