"""The head of a request: its limits, and what makes it not to be trusted. Pure.

Twice: `check_bytes` looks at the bytes before any parser does, because parsers differ in what they let through; `Head`
looks at what ASGI shows of a parsed one, for whatever server runs the app. The door and the app judge by the same two.
"""

from __future__ import annotations

import re

from hypercorn.typing import HTTPScope

from api.http.access import split_authority
from engine.limits import KIB

HEAD_BYTES_MAX = 16 * KIB
HEAD_FIELDS_MAX = 100
URI_BYTES_MAX = 8 * KIB

INVALID = "invalid request"
UNPARSABLE = "the request is not valid HTTP/1.1"
NO_PATH = "expected a request target that starts with /"
TWO_LENGTHS = "Transfer-Encoding goes with HTTP/1.1 and without Content-Length"
ONE_LENGTH = "expected one Content-Length, a number"
ONE_HOST = "expected one Host header"
BAD_HOST = "expected a Host header of the form NAME, NAME:PORT or [ADDRESS]:PORT"
OTHER_CODING = "chunked is the only transfer coding that is understood"
OTHER_VERSION = "this server speaks HTTP/1.1 and HTTP/1.0 only"

NOT_HTTP = (
    b"-ERR this is HTTP, not the Redis protocol: Redis clients cannot be used here;"
    b" send commands by POST, as JSON, with an HTTP client such as curl\r\n"
)
"""What a client of Redis gets: it prints the line as the error that it is."""

ERRORS = {414: "uri too long", 431: "headers too large", 505: "http version not supported"}
"""The errors of heads that are refused by their bytes, by status; of all others it is INVALID."""

_BAD_LINE_END = re.compile(rb"(?<!\r)\n|\r[^\n]")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HOST = re.compile(rb"\nhost:", re.IGNORECASE)
_LENGTHS = re.compile(rb"\ncontent-length:[ \t]*([^\r]*)", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,19}[ \t]*")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_SMALL_LETTER = re.compile(rb"[a-z]")
_REQUEST_BEGINS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*(?: |$)|\r?$")
_REDIS_BEGINS = re.compile(
    rb"\*[0-9]{1,10}\r\n|(?:PING|ECHO|AUTH|HELLO|SELECT|CLIENT|COMMAND|CONFIG|INFO|QUIT)(?: (?!/|.*HTTP/)[^\n]*)?\r?\n",
    re.IGNORECASE,
)
"""An array of RESP, or a command in a line that clients of Redis begin with."""

_EMPTY_LINES = re.compile(rb"(?:\r\n)*+")
_MANY_EMPTY_LINES = b"\r\n" * 256
_NO_REQUEST_LINE = "expected a request line of HTTP/1.0 or HTTP/1.1"
_ABSOLUTE_FORM = re.compile(r"https?://([^/?#]*)(/.*)?", re.IGNORECASE)


class BadHead(Exception):
    """Bytes that are no head of a request, or one over its limits.

    Attributes:
        status: to answer, 400, 414, 431, 501 or 505.
        detail: what was expected, for a person.
        verbatim: what to send instead of a response, to a client that does not speak HTTP; empty for all others.
    """

    def __init__(self, detail: str, status: int = 400, verbatim: bytes = b"") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.verbatim = verbatim


def skip_empty_lines(data: bytes, at: int = 0) -> int:
    """Skips the empty lines before a head, which old clients send behind a body (RFC 9112, 2.2).

    Args:
        data: as received.
        at: where a head may begin in it.

    Returns:
        Where it does.
    """
    while data.startswith(_MANY_EMPTY_LINES, at):  # a client may send nothing else; the pattern is 50 times slower
        at += len(_MANY_EMPTY_LINES)
    match = _EMPTY_LINES.match(data, at)
    assert match is not None, "it matches nothing, too"
    return match.end()


def check_bytes(data: bytes) -> None:
    """Refuses a head, or the beginning of one, as early as its bytes allow.

    Args:
        data: what has come of the head; the body may follow.

    Raises:
        BadHead: with the status to answer.
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    _check_characters(head)
    line, found, fields = head.partition(b"\r\n")
    if found or end >= 0:
        _check_request_line(line)
    elif not _REQUEST_BEGINS.match(line):
        raise BadHead(_NO_REQUEST_LINE)
    elif len(line) > URI_BYTES_MAX + 64:
        raise BadHead(f"the URI is longer than {URI_BYTES_MAX} bytes", 414)
    if b"\n " in fields or b"\n\t" in fields or fields.startswith((b" ", b"\t")):
        raise BadHead("header lines may not be folded")
    if len(head) > HEAD_BYTES_MAX:
        raise BadHead(f"the head is longer than {HEAD_BYTES_MAX} bytes", 431)
    if head.count(b"\r\n") > HEAD_FIELDS_MAX:
        raise BadHead(f"the head has more than {HEAD_FIELDS_MAX} fields", 431)
    if end >= 0:
        _check_fields(head, host_needed=not line.endswith(b"1.0"))


def _check_characters(data: bytes) -> None:
    if _REDIS_BEGINS.match(data):
        raise BadHead(_NO_REQUEST_LINE, verbatim=NOT_HTTP)
    if _BAD_LINE_END.search(data):
        raise BadHead("lines of a head end in CR LF, and neither stands alone")
    if _CONTROL.search(data):
        raise BadHead("a head holds no control characters")


def _check_request_line(line: bytes) -> None:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadHead(_NO_REQUEST_LINE)
    method, target, major, _minor = match.groups()
    if major != b"1":
        raise BadHead(OTHER_VERSION, 505)
    if len(target) > URI_BYTES_MAX:
        raise BadHead(f"the URI is longer than {URI_BYTES_MAX} bytes", 414)
    if not target.lower().startswith((b"/", b"*", b"http://", b"https://")):
        raise BadHead(NO_PATH)
    if _SMALL_LETTER.search(method):  # another method than the one in capitals (RFC 9110, 9.1)
        raise BadHead("methods are written in capital letters, such as POST", 501)


def _check_fields(head: bytes, *, host_needed: bool) -> None:
    lengths = _LENGTHS.findall(head)
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise BadHead(ONE_LENGTH)
    hosts = len(_HOST.findall(head))
    if hosts > 1 or (host_needed and not hosts):
        raise BadHead(ONE_HOST)


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
            return 400, INVALID, TWO_LENGTHS
        if self.length is None and not self._chunked:
            return 400, INVALID, ONE_LENGTH
        if len(self._hosts) > 1 or (not self._hosts and version == "1.1"):
            return 400, INVALID, ONE_HOST
        if any(host and split_authority(host.decode("latin-1")) is None for host in self._hosts):
            return 400, INVALID, BAD_HOST
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
            return 400, INVALID, NO_PATH
        if [match[1].lower()] != [host.decode("latin-1").lower() for host in self._hosts]:
            return 400, INVALID, "the request target names another host than the Host header"
        self._scope["path"] = match[2] or "/"
        return None
