"""h11 made strict: what it lets through in the head of a request, and Holdfast does not.

Lines that end in a bare LF or hold a bare CR, folded header lines, protocols other than HTTP/1.0 and 1.1, more
fields or bytes than `api/http/head.py` allows even when they come in one packet, and upgrades; in a body, chunks that
`api/http/chunks.py` does not take. Empty lines before a head, which h11 refuses, are skipped.
"""

from __future__ import annotations

import h11

from api.http.chunks import BadBody, Chunks
from api.http.head import HEAD_BYTES_MAX, OTHER_CODING, UNPARSABLE, BadHead, check_bytes, skip_empty_lines

_HALF_A_LINE = b"\r"
"""The beginning of an empty line before a head."""


class StrictParser(h11.Connection):
    """An h11 server connection that is strict about heads and never upgrades.

    Attributes:
        ended: nothing more is parsed: the client is gone, or was refused.
        complaint: what was wrong with the request that was refused last.
        verbatim: what to send instead of a response, to a client that does not speak HTTP; else empty.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self.ended = False
        self.complaint = ""
        self.verbatim = b""
        self._chunks: Chunks | None = None  # of the body that is coming
        self._unchecked = b""

    @property
    def deaf(self) -> bool:
        """Whether bytes that come now belong to no request, such as those behind `Connection: close`."""
        return self.ended or self.their_state is h11.MUST_CLOSE

    @property
    def head_begun(self) -> bool:
        """Whether some bytes of a head are here, and the rest is not."""
        return self.their_state is h11.IDLE and self.trailing_data[0] not in (b"", _HALF_A_LINE)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11 has it; raises RemoteProtocolError for more than h11 does."""
        if self.deaf:
            return h11.NEED_DATA  # h11 has a complaint, Hypercorn answers it, and the request before loses
        try:
            if self.their_state is h11.IDLE:
                self._skip_empty_lines()
                if self.trailing_data[0] == _HALF_A_LINE:
                    return h11.NEED_DATA
                check_bytes(self.trailing_data[0])
            else:
                self._check_chunks()
            event = super().next_event()
        except BadHead as error:
            self.complaint, self.verbatim = error.detail, error.verbatim
            raise h11.RemoteProtocolError(error.detail, error.status) from None
        except BadBody:
            self.complaint = UNPARSABLE
            self._process_error(h11.CLIENT)  # reaches: as if h11 had found it
            raise h11.RemoteProtocolError(UNPARSABLE) from None
        except h11.RemoteProtocolError as error:
            self.complaint = OTHER_CODING if error.error_status_hint == 501 else UNPARSABLE
            raise
        if not isinstance(event, h11.Request):
            return event
        chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
        self._chunks, self._unchecked = Chunks() if chunked else None, self.trailing_data[0] if chunked else b""
        return _as_served(event)

    def receive_data(self, data: bytes) -> None:
        """As h11 has it."""
        if self._chunks is not None and not self._chunks.complete:
            self._unchecked += data
        super().receive_data(data)

    def _skip_empty_lines(self) -> None:
        """Reaches: there is no other way to take bytes that have come back out of h11."""
        empty = skip_empty_lines(self.trailing_data[0])
        if empty:
            self._receive_buffer.maybe_extract_at_most(empty)

    def _check_chunks(self) -> None:
        """Has the decoder of the door look at a body first, which is stricter than h11. Raises BadBody."""
        if self._chunks is not None and self._unchecked:
            self._chunks.take(self._unchecked, 0)
            self._unchecked = b""


def _as_served(request: h11.Request) -> h11.Request:
    """Drops `Upgrade`, which a server may ignore: no h2c, and no websocket stream with its own errors.

    Later minor versions are served as the one that is known.
    """
    version = b"1.0" if request.http_version == b"1.0" else b"1.1"
    if version == request.http_version and not any(name == b"upgrade" for name, _ in request.headers):
        return request
    return h11.Request(
        method=request.method,
        target=request.target,
        http_version=version,
        headers=[(name, value) for name, value in request.headers if name != b"upgrade"],
    )
