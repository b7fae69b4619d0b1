"""Which requests are refused by their head alone, and with which answer. Pure.

Both ways into HTTP ask the same judge, before they wait for a body: so `Expect: 100-continue` gets the final answer at
once, and nothing that is refused reaches the engine, or a router that takes `get` for `GET`.

A head that is not to be trusted (`Head.fault`) comes before that: behind it the connection ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from hypercorn.typing import HTTPScope

from api.dialects.answers import Answer, failure
from api.http.access import Access
from api.http.head import Head
from api.http.probes import PROBES
from api.http.service import COMMAND, MULTI, PATHS, PIPELINE
from engine.replies import Error

STATS, CHECKPOINT = "/stats", "/checkpoint"

METHODS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys((*PATHS, CHECKPOINT), ("POST",)),
    **dict.fromkeys((*PROBES, STATS), ("GET", "HEAD")),
}
"""Which paths there are, and by which methods they are asked for. An engine without a log has no checkpoint: that is
for the application to say, for a head may come before there is an engine."""

_EXAMPLE = """send commands here by POST, such as curl -d '{"command": "PING"}' URL"""
_METHOD_DETAILS = {
    COMMAND: f"this is Holdfast, a key-value store with queues: {_EXAMPLE}",
    PIPELINE: "send a list of commands here by POST",
    MULTI: "send a list of commands here by POST",
}
_OTHER_PATHS = f"commands go by POST to {COMMAND}, {PIPELINE} and {MULTI}"

_NOT_SPOKEN = {
    "/multi-exec": f"not found: the REST API of Upstash is not spoken here yet; an atomic batch goes to {MULTI}",
}
"""Paths of other products, and what to say in the member `error`, for their clients show nothing else."""


@dataclass(frozen=True, slots=True)
class Judge:
    """What the heads of requests are judged by.

    Attributes:
        access: who may speak to the server.
        body_bytes_max: longest body that is taken.
    """

    access: Access
    body_bytes_max: int

    def refusal(self, scope: HTTPScope, head: Head) -> Answer | None:
        """Judges a head that has no fault.

        Args:
            scope: with the method, the path as it is routed, and the fields.
            head: of the same request.

        Returns:
            The answer, for a request that is refused; None for one that is served.
        """
        refused = self.access.check(scope["path"], scope["headers"])
        if refused is not None:
            return failure(refused.status, refused.error, refused.detail)
        return self._misdirected(scope["method"], scope["path"]) or self._bad_body(scope, head)

    @staticmethod
    def _misdirected(method: str, path: str) -> Answer | None:
        """Refuses a path that does not exist, and a method that it does not take."""
        methods = METHODS.get(path)
        if methods is None:
            return failure(404, _NOT_SPOKEN.get(path, "not found"), _OTHER_PATHS)
        if method in methods:
            return None
        allow = ", ".join(methods)
        refused = failure(405, "method not allowed", _METHOD_DETAILS.get(path, f"{path} takes {allow} only"))
        return Answer(405, refused.body, allow)

    def _bad_body(self, scope: HTTPScope, head: Head) -> Answer | None:
        """Refuses a body that is compressed, or too long."""
        if scope["path"] in PATHS:
            codings = [value.lower() for name, value in scope["headers"] if name == b"content-encoding"]
            if set(codings) - {b"", b"identity"}:
                error = HTTPStatus.UNSUPPORTED_MEDIA_TYPE.phrase.lower()
                return failure(415, error, "a body is taken uncompressed only: send it without Content-Encoding")
        if head.length is not None and head.length > self.body_bytes_max:
            return too_large(self.body_bytes_max)
        return None


def too_large(body_bytes_max: int) -> Answer:
    """The answer to a body over its limit."""
    return failure(413, Error.TOO_LARGE.value, f"a body has at most {body_bytes_max} bytes (--max-body)")
