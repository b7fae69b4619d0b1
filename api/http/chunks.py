"""A body in chunks, as HTTP/1.1 has it, read strictly: both ways into HTTP take what this takes. Pure."""

from __future__ import annotations

import re
import sys

from engine.limits import KIB

CHUNK_BYTES_MAX = 1 * KIB
"""What the extensions of all chunks and all trailers together may take."""

_SMALL_LINE_BYTES = 32
"""A line up to this length is no part of that: the size of a chunk and what ends it."""

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?[ \t]*\r\n")
_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n")


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
