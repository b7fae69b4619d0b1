"""The head of a request as ASGI shows it: its limits, and what makes it not to be trusted. Pure.

The parser has refused most of this already (`api/strict_parser.py`); here it holds for whatever server runs the app.
"""

from __future__ import annotations

import re

from hypercorn.typing import HTTPScope

from engine.limits import KIB

HEAD_BYTES_MAX = 16 * KIB
HEAD_FIELDS_MAX = 100
URI_BYTES_MAX = 8 * KIB

INVALID = "invalid request"

_ABSOLUTE_FORM = re.compile(r"https?://([^/?#]*)(/.*)?", re.IGNORECASE)


class Head:
    """What the head of a request says about itself."""

    def __init__(self, scope: HTTPScope) -> None:
        self._scope = scope
        self._hosts: list[bytes] = []
        self._lengths: list[bytes] = []
        self._chunked = False
        self._size = 0
        self._fields = 0
        for name, value in scope["headers"]:
            self._fields += 1
            self._size += len(name) + len(value) + 4
            if name == b"host":
                self._hosts.append(value)
            elif name == b"content-length":
                self._lengths.append(value)
            elif name == b"transfer-encoding":
                self._chunked = True

    @property
    def has_body(self) -> bool:
        """Whether a body follows."""
        return self._chunked or self._lengths not in ([], [b"0"])

    @property
    def length(self) -> int | None:
        """The length of the body; None when only its end will tell, or `fault` has something to say."""
        if self._chunked or len(self._lengths) > 1:
            return None
        length = self._lengths[0] if self._lengths else b"0"
        return int(length) if length.isdigit() else None

    def fault(self) -> tuple[int, str, str] | None:
        """Returns status, error and detail when the head is not to be trusted or too large."""
        version = self._scope["http_version"]
        if version not in ("1.0", "1.1"):
            return 400, INVALID, "expected HTTP/1.0 or HTTP/1.1"
        if len(self._scope["path"]) + len(self._scope["query_string"]) > URI_BYTES_MAX:
            return 414, "uri too long", f"a URI has at most {URI_BYTES_MAX} bytes"
        if self._fields > HEAD_FIELDS_MAX or self._size > HEAD_BYTES_MAX:
            limits = f"{HEAD_FIELDS_MAX} fields and {HEAD_BYTES_MAX} bytes"
            return 431, "headers too large", f"a head has at most {limits}"
        if self._chunked and (self._lengths or version == "1.0"):
            return 400, INVALID, "Transfer-Encoding goes with HTTP/1.1 and without Content-Length"
        if self.length is None and not self._chunked:
            return 400, INVALID, "expected one Content-Length, a number"
        if len(self._hosts) > 1 or (not self._hosts and version == "1.1"):
            return 400, INVALID, "expected one Host header"
        return self._target_fault()

    def _target_fault(self) -> tuple[int, str, str] | None:
        """Checks the request target, and brings its absolute form to a path, which is what is routed."""
        path = self._scope["path"]
        if path.startswith("//"):
            return 404, "not found", ""  # Quart would route it as if it had one slash
        if path.startswith("/") or (path == "*" and self._scope["method"] == "OPTIONS"):
            return None
        match = _ABSOLUTE_FORM.fullmatch(path)
        if match is None:
            return 400, INVALID, "expected a request target that starts with /"
        if [match[1].lower()] != [host.decode("latin-1").lower() for host in self._hosts]:
            return 400, INVALID, "the request target names another host than the Host header"
        self._scope["path"] = match[2] or "/"
        return None
