"""h11 made strict: what it lets through in the head of a request, and Holdfast does not.

Lines that end in a bare LF or hold a bare CR, folded header lines, protocols other than HTTP/1.0 and 1.1, more
fields or bytes than `api/head.py` allows even when they come in one packet, and upgrades.
"""

from __future__ import annotations

import re

import h11

from api.head import HEAD_BYTES_MAX, HEAD_FIELDS_MAX, URI_BYTES_MAX

_BAD_LINE_END = re.compile(rb"(?<!\r)\n|\r[^\n]")
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ ([\x21-\x7e]+) HTTP/1\.[01]")


class StrictParser(h11.Connection):
    """An h11 server connection that is strict about heads and never upgrades.

    Attributes:
        ended: nothing more is parsed: the client is gone, or was refused.
        complaint: what was wrong with the request that was refused last.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self.ended = False
        self.complaint = ""

    @property
    def deaf(self) -> bool:
        """Whether bytes that come now belong to no request, such as those behind `Connection: close`."""
        return self.ended or self.their_state is h11.MUST_CLOSE

    @property
    def head_begun(self) -> bool:
        """Whether some bytes of a head are here, and the rest is not."""
        return self.their_state is h11.IDLE and bool(self.trailing_data[0])

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11 has it; raises RemoteProtocolError for more than h11 does."""
        if self.deaf:
            return h11.NEED_DATA  # h11 has a complaint, Hypercorn answers it, and the request before loses
        try:
            if self.their_state is h11.IDLE:
                check_head(self.trailing_data[0])
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.complaint = str(error).partition(": bytearray")[0]
            raise
        return _without_upgrade(event) if isinstance(event, h11.Request) else event


def check_head(data: bytes) -> None:
    """Refuses a head h11 would let through, as early as its bytes allow.

    Args:
        data: what has come of the head; the body may follow.

    Raises:
        h11.RemoteProtocolError: with the status to answer.
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    if _BAD_LINE_END.search(head):
        raise h11.RemoteProtocolError("lines of a head end in CR LF, and neither stands alone")
    line, found, fields = head.partition(b"\r\n")
    if found or end >= 0:
        _check_request_line(line)
    elif len(line) > URI_BYTES_MAX + 64:
        raise h11.RemoteProtocolError(f"the URI is longer than {URI_BYTES_MAX} bytes", 414)
    if b"\n " in fields or b"\n\t" in fields or fields.startswith((b" ", b"\t")):
        raise h11.RemoteProtocolError("header lines may not be folded")
    if len(head) > HEAD_BYTES_MAX:
        raise h11.RemoteProtocolError(f"the head is longer than {HEAD_BYTES_MAX} bytes", 431)
    if head.count(b"\r\n") > HEAD_FIELDS_MAX:
        raise h11.RemoteProtocolError(f"the head has more than {HEAD_FIELDS_MAX} fields", 431)


def _check_request_line(line: bytes) -> None:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise h11.RemoteProtocolError("expected a request line of HTTP/1.0 or HTTP/1.1")
    if len(match[1]) > URI_BYTES_MAX:
        raise h11.RemoteProtocolError(f"the URI is longer than {URI_BYTES_MAX} bytes", 414)


def _without_upgrade(request: h11.Request) -> h11.Request:
    """Drops `Upgrade`, which a server may ignore: no h2c, and no websocket stream with its own errors."""
    if not any(name == b"upgrade" for name, _ in request.headers):
        return request
    return h11.Request(
        method=request.method,
        target=request.target,
        http_version=request.http_version,
        headers=[(name, value) for name, value in request.headers if name != b"upgrade"],
    )
