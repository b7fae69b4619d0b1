"""What a client sends, taken apart into requests: heads, remembered by their bytes, and bodies. No I/O, no clock.

The connection puts what it received into `data`, and takes whole requests out, for as long as it may start any. What is
no request, or may not be read to its end, is `Refused`: the connection answers that and closes, for nobody can tell
where the next request would begin.

The rules that hold here; the codes group faults as in docs/testing.md:

- F6: a body that is still coming takes its share of the budget as it grows. A body over its limit is refused where it
  passes that.
- The body behind a head that is refused is thrown away if it is short: so the connection can stay open.
"""

from __future__ import annotations

from api.dialects.answers import Answer, failure
from api.door.request import IncomingBody, RequestHead, refusal_of
from api.door.shared import Shared
from api.http.body import FREE_BODY_BYTES, HeldBody
from api.http.chunks import BadBody
from api.http.head import HEAD_BYTES_MAX, INVALID, UNPARSABLE, BadHead, check_bytes, skip_empty_lines
from api.http.judge import too_large
from api.http.service import BODIES_FULL
from engine.limits import KIB

SMALL_BODY_BYTES = 64 * KIB
"""A body up to this length is read and thrown away behind a refusal."""

_HEAD_END = b"\r\n\r\n"
_HEAD_END_BYTES = len(_HEAD_END)

_NO_HEAD = RequestHead(b"", b"", "1.1", (), None, 0, False, False, None)


class Refused(Exception):
    """What came gets its answer, and is the last that is read of its client.

    Attributes:
        answer: to it.
        head: of the request, if there is one.
    """

    def __init__(self, answer: Answer, head: RequestHead = _NO_HEAD) -> None:
        super().__init__(answer.status)
        self.answer = answer
        self.head = head


class Incoming:
    """What has come from a client and is no request yet.

    Attributes:
        data: received, and not taken yet.
        body: that is still coming, if there is one.
    """

    __slots__ = ("_at", "_shared", "body", "data")

    def __init__(self, shared: Shared) -> None:
        self.data = b""
        self.body: IncomingBody | None = None
        self._at = 0  # where what is not taken begins in it, while requests are being taken
        self._shared = shared

    def next(self) -> tuple[RequestHead, bytes, HeldBody | None] | None:
        """Takes the next request out.

        Returns:
            Its head, its body, and the body's share of the budget if it has one; of one that its head refuses, the
            body does not matter. None when it is not here whole: then look at `body`.

        Raises:
            Refused: it is none, or its rest is not read.
        """
        if self.body is not None:
            return self._read_body(self.body)
        data, at = self.data, self._at
        if data.startswith(b"\r\n", at):
            at = self._at = skip_empty_lines(data, at)
            if at == len(data):
                self.data, self._at = b"", 0
                return None
        end = data.find(_HEAD_END, at, at + HEAD_BYTES_MAX + _HEAD_END_BYTES)
        if end < 0:
            _check_begin(data[at:])
            return None
        end += _HEAD_END_BYTES
        head = self._shared.read_head(data[at:end])
        if head.refusal is not None or head.length is None or end + head.length > len(data):
            return self._begin_body(head, end)
        body_end = end + head.length
        if body_end == len(data):  # as nearly always
            self.data, self._at = b"", 0
        else:
            self._at = body_end
        return head, data[end:body_end], None

    def _begin_body(self, head: RequestHead, at: int) -> tuple[RequestHead, bytes, HeldBody | None] | None:
        if head.refusal is not None and not (head.keep_alive and _throws_away(head)):
            raise Refused(head.refusal, head)
        self._at = at
        self.body = IncomingBody(head)
        self.body.is_waited_for = head.expects_continue and at == len(self.data)
        return self._read_body(self.body)

    def _read_body(self, body: IncomingBody) -> tuple[RequestHead, bytes, HeldBody | None] | None:
        try:
            piece, self._at = body.take(self.data, self._at)
        except BadBody:
            raise Refused(failure(400, INVALID, UNPARSABLE)) from None
        if body.head.refusal is None and piece:
            self._hold(body, piece)
        if not body.complete:
            return None
        self.body = None
        body.held.data = bytes(body.data)
        return body.head, body.held.data, body.held

    def _hold(self, body: IncomingBody, piece: bytes) -> None:
        """Adds to a body, unless it may not grow so long."""
        service = self._shared.service
        size = len(body.data) + len(piece)
        if size > service.limits.body_bytes_max:
            raise Refused(too_large(service.limits.body_bytes_max))
        if size > FREE_BODY_BYTES and not body.held.hold(service.budget, size):
            raise Refused(BODIES_FULL)
        body.data += piece

    @property
    def held_bytes(self) -> int:
        """What is here, but for a body that has a share of the budget."""
        body = self.body
        return len(self.data) + (0 if body is None or len(body.data) > FREE_BODY_BYTES else len(body.data))

    @property
    def is_paused(self) -> bool:
        """Whether a body has its rest here, or some of it, which takes another turn."""
        return self.body is not None and self._at < len(self.data)

    def cut(self) -> None:
        """Lets go of the bytes that were taken."""
        self.data, self._at = self.data[self._at :], 0

    def drop(self) -> None:
        """Throws away what is here; the share of a body goes back now, for others may need it."""
        self.data, self._at = b"", 0
        if self.body is not None:
            self.body.held.release()
            self.body = None

    def late(self) -> Refused:
        """Says why no more is read of a client whose time is up."""
        settings = self._shared.settings
        if self.body is None:
            return Refused(failure(408, "request timeout", f"a head has {settings.head_timeout_s:g} s to arrive"))
        if self.body.head.refusal is not None:  # what is left of its body does not matter
            return Refused(self.body.head.refusal, self.body.head)
        return Refused(failure(408, "request timeout", f"a body has {settings.body_timeout_s:g} s to arrive"))


def _check_begin(data: bytes) -> None:
    """Refuses the beginning of a head as early as its bytes allow."""
    try:
        check_bytes(data)
    except BadHead as error:
        raise Refused(refusal_of(error)) from None


def _throws_away(head: RequestHead) -> bool:
    """Whether the body behind a refused head is worth waiting for."""
    return head.length is not None and head.length <= SMALL_BODY_BYTES and not head.expects_continue
