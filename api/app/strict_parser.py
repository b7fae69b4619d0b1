"""h11 made strict: what it lets through in the head of a request, and Holdfast does not.

Lines that end in a bare LF or hold a bare CR, folded header lines, protocols other than HTTP/1.0 and 1.1, more
fields or bytes than `api/http/head.py` allows even when they come in one packet, and upgrades.
"""

from __future__ import annotations

import h11

from api.http.head import HEAD_BYTES_MAX, OTHER_CODING, UNPARSABLE, BadHead, check_bytes


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
                check_bytes(self.trailing_data[0])
            event = super().next_event()
        except BadHead as error:
            self.complaint = error.detail
            raise h11.RemoteProtocolError(error.detail, error.status) from None
        except h11.RemoteProtocolError as error:
            self.complaint = OTHER_CODING if error.error_status_hint == 501 else UNPARSABLE
            raise
        return _without_upgrade(event) if isinstance(event, h11.Request) else event


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
