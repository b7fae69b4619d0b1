"""Heads and bodies as the door reads them (api/door/request.py): pure functions of bytes.

What the door takes goes on to h11 and the application; so the two parsers are held against one another.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import cast
from urllib.parse import unquote

import h11
import pytest
from hypercorn.typing import HTTPScope
from hypothesis import example, given, settings
from hypothesis import strategies as st

from api.app.strict_parser import StrictParser
from api.door.request import IncomingBody, RequestHead, read_head
from api.http.access import Access
from api.http.chunks import CHUNK_BYTES_MAX, BadBody, Chunks
from api.http.head import HEAD_BYTES_MAX, HEAD_FIELDS_MAX, URI_BYTES_MAX, Head
from api.http.judge import Judge
from tests.api.app.test_http_stack import REFUSED
from tests.harness.effort import many

BODY_BYTES_MAX = 1_000_000

EXAMPLES = settings(max_examples=many(500))


def judge(access: Access = Access()) -> Judge:  # noqa: B008  # it is frozen
    return Judge(access, BODY_BYTES_MAX)


def head_of(*fields: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes = b"Host: localhost") -> RequestHead:
    lines = [line, *([host] if host else []), *fields]
    return read_head(b"\r\n".join([*lines, b"", b""]), judge())


def status_of(head: RequestHead) -> int | None:
    return None if head.refusal is None else head.refusal.status


# Heads


def test_a_head_says_what_follows_from_it() -> None:
    head = head_of(b"Content-Length: 5", b"X-Y:  \ta b\t ", b"X-Y:", line=b"POST /?x=/ HTTP/1.1")
    assert (head.method, head.target, head.version) == (b"POST", b"/?x=/", "1.1")
    assert head.fields == ((b"host", b"localhost"), (b"content-length", b"5"), (b"x-y", b"a b"), (b"x-y", b""))
    assert (head.path, head.length, head.keep_alive, head.expects_continue) == ("/", 5, True, False)
    assert head.refusal is None


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"POST / HTTP/1.1", "/"),
        (b"POST /?a=b HTTP/1.1", "/"),
        (b"POST /pipeline HTTP/1.1", "/pipeline"),
        (b"POST /p%69peline HTTP/1.1", "/pipeline"),
        (b"POST /multi HTTP/1.0", "/multi"),
        (b"POST http://localhost/multi?x HTTP/1.1", "/multi"),
        (b"POST http://LOCALHOST HTTP/1.1", "/"),
        (b"POST /checkpoint HTTP/1.1", None),
        (b"GET /livez HTTP/1.1", "/livez"),
        (b"HEAD /stats?x HTTP/1.0", None),
    ],
)
def test_commands_and_probes_are_the_doors_and_all_else_the_applications(line: bytes, path: str | None) -> None:
    head = head_of(line=line)
    assert (head.path, head.refusal) == (path, None)


@pytest.mark.parametrize(("line", "status"), [(b"GET /", 405), (b"POST /multi/", 404), (b"OPTIONS *", 404)])
def test_f8_what_there_is_not_is_refused_by_the_head_and_the_connection_goes_on(line: bytes, status: int) -> None:
    """F8"""
    head = head_of(line=line + b" HTTP/1.1")
    assert (status_of(head), head.keep_alive) == (status, True)


@pytest.mark.parametrize("method", [b"POST", b"CONNECT", b"PRI", b"M-SEARCH", b"BREW", b"X!#$%&'*+.^_`|~0-9", b"P"])
def test_methods_are_not_for_the_parser_to_know(method: bytes) -> None:
    head = head_of(line=method + b" /livez HTTP/1.1")
    assert (head.method, head.target, status_of(head)) == (method, b"/livez", 405)
    assert head.refusal is not None
    assert head.refusal.allow == "GET, HEAD"


@pytest.mark.parametrize("minor", b"23456789")
def test_a_later_minor_version_is_served_as_the_one_that_is_known(minor: int) -> None:
    head = head_of(line=b"POST / HTTP/1.%c" % minor)
    assert (head.path, head.version, head.keep_alive, head.refusal) == ("/", "1.1", True, None)
    assert status_of(head_of(line=b"POST / HTTP/1.%c" % minor, host=b"")) == 400


@pytest.mark.parametrize("line", [b"POST /nothing", b"GET /", b"POST /livez", b"BREW /pipeline"])
def test_f10_who_would_wait_for_100_continue_is_refused_by_the_head(line: bytes) -> None:
    """F10"""
    head = head_of(b"Expect: 100-continue", b"Content-Length: 5", line=line + b" HTTP/1.1")
    assert (head.expects_continue, status_of(head)) == (True, 404 if b"nothing" in line else 405)


@pytest.mark.parametrize(
    ("fields", "keep_alive", "expects_continue"),
    [
        ([], True, False),
        ([b"Connection: close"], False, False),
        ([b"Connection: Keep-Alive, CLOSE"], False, False),
        ([b"Connection: keep-alive", b"Connection: x,close"], False, False),
        ([b"Connection: closed"], True, False),
        ([b"Expect: 100-Continue"], True, True),
        ([b"Expect: x, 100-continue"], True, True),
        ([b"Expect: 100-continue", b"Expect: x"], True, True),
        ([b"Expect: 200-ok"], True, False),
    ],
)
def test_what_the_client_wants_of_the_connection(fields: list[bytes], keep_alive: bool, expects_continue: bool) -> None:
    head = head_of(*fields)
    assert (head.keep_alive, head.expects_continue) == (keep_alive, expects_continue)
    old = head_of(*fields, line=b"POST / HTTP/1.0")
    assert (old.keep_alive, old.expects_continue) == (False, False)


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
def test_f2_an_upgrade_is_ignored(upgrade: bytes) -> None:
    """F2"""
    head = head_of(b"Upgrade: " + upgrade, b"Connection: Upgrade", b"Content-Length: 3")
    assert (head.path, head.length, head.keep_alive, head.refusal) == ("/", 3, True, None)


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_f1_f2_f3_a_head_not_to_be_trusted_is_refused_and_keeps_no_connection(data: bytes, status: int) -> None:
    """F1, F2, F3: those of which the head itself is to blame."""
    end = data.find(b"\r\n\r\n") + 4
    head = read_head(data[:end] if end > 3 else data, judge())
    if b"chunk" in data and status == 400 and head.refusal is None:
        assert head.length is None  # its body is to blame
    else:
        assert (status_of(head), head.keep_alive) == (status, False)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([b"Content-Length: 5", b"Content-Length: 5"], 400),
        ([b"Content-Length: 5, 5"], 400),
        ([b"Content-Length: +5"], 400),
        ([b"Content-Length: 0x5"], 400),
        ([b"Content-Length: 5 5"], 400),
        ([b"Content-Length:"], 400),
        ([b"Content-Length: 99999999999999999999"], 400),
        ([b"Content-Length: 18446744073709551617"], 400),
        ([b"Content-Length: 9999999999999999999"], 413),
        ([b"Content-Length: 0005"], None),
        ([b"Transfer-Encoding:"], 501),
        ([b"Transfer-Encoding: chunked, chunked"], 501),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], 501),
        ([b"Transfer-Encoding: chunked;a=b"], 501),
        ([b"Transfer-Encoding: identity"], 501),
        ([b"Transfer-Encoding: x", b"Transfer-Encoding: chunked"], 501),
        ([b"Transfer-Encoding: CHUNKED"], None),
        ([b"X: a\x00b"], 400),
        ([b"X: a\x0bb"], 400),
        ([b"X: a\x7fb"], 400),
        ([b"X: a\x80\xffb"], None),
        ([b"X\x80: b"], 400),
        ([b": b"], 400),
        ([b"X"], 400),
        ([b"Host: localhost"], 400),
        ([b"Origin: http://evil.example"], 403),
    ],
)
def test_f1_fields_that_parsers_differ_about(fields: list[bytes], status: int | None) -> None:
    """F1"""
    assert status_of(head_of(*fields)) == status


def test_f3_the_limits_of_a_head_are_reached_exactly() -> None:
    """F3"""
    fields = [b"a%d: b" % n for n in range(HEAD_FIELDS_MAX - 1)]
    assert status_of(head_of(*fields)) is None
    assert status_of(head_of(*fields, b"one: more")) == 431
    rest = HEAD_BYTES_MAX - len(b"POST / HTTP/1.1\r\nHost: localhost\r\nX: ")
    assert status_of(head_of(b"X: " + b"a" * rest)) is None
    assert status_of(head_of(b"X: " + b"a" * (rest + 1))) == 431
    assert status_of(head_of(line=b"GET /%b HTTP/1.1" % (b"a" * (URI_BYTES_MAX - 1)))) == 404
    assert status_of(head_of(line=b"GET /%b HTTP/1.1" % (b"a" * URI_BYTES_MAX))) == 414


def test_f6_a_body_over_its_limit_is_refused_by_the_head() -> None:
    """F6"""
    assert status_of(head_of(b"Content-Length: %d" % BODY_BYTES_MAX)) is None
    head = head_of(b"Content-Length: %d" % (BODY_BYTES_MAX + 1))
    assert (status_of(head), head.length) == (413, BODY_BYTES_MAX + 1)


def test_f9_who_may_not_pass_is_refused_and_can_go_on() -> None:
    """F9"""
    data = b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = read_head(data, judge(Access(token="secret")))
    assert (status_of(head), head.keep_alive, head.length) == (401, True, 0)
    assert status_of(head_of(host=b"Host: evil.example")) == 403


LINES = st.sampled_from(
    [
        *(
            b"Host: localhost",
            b"Content-Length: 5",
            b"Transfer-Encoding: chunked",
            b"transfer-encoding: gzip",
            b"X: a b",
        ),
        *(b"Connection: close", b"Connection: keep-alive, x", b"Expect: 100-continue", b"Upgrade: h2c", b"X-Y:"),
        *(b"Origin: http://localhost", b"Accept: \xe2\x82\xac"),
    ]
)
REQUEST_LINES = st.sampled_from(
    [
        *(
            b"POST / HTTP/1.1",
            b"POST / HTTP/1.7",
            b"pOST / HTTP/2.0",
            b"GET /livez HTTP/1.1",
            b"POST / HTTP/1.0",
            b"OPTIONS * HTTP/1.1",
            b"PUT /a%20b?c HTTP/1.1",
        ),
        *(b"GET http://localhost/livez?x=y HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"X /#/{|} HTTP/1.1"),
    ]
)
SPLICES = st.sampled_from(
    [
        *(
            b"",
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\t",
            b":",
            b",",
            b";",
            b"\x00",
            b"\x0b",
            b"\x0c",
            b"\x7f",
            b"\x80",
            b"-",
            b"+",
        ),
        *(b"chunked", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n ", b"Host: localhost\r\n"),
    ]
) | st.binary(min_size=1, max_size=1)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads, most of them spoilt at a place or two."""
    lines = [draw(REQUEST_LINES), b"Host: localhost", *draw(st.lists(LINES, max_size=4))]
    data = b"\r\n".join([*lines, b"", b""])
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data) - 5))
        data = data[:at] + draw(SPLICES) + data[at + draw(st.integers(0, 2)) :]
    end = data.find(b"\r\n\r\n")
    return data[: end + 4] if end >= 0 else data + b"\r\n\r\n"


def by_h11(data: bytes) -> tuple[object, ...] | None:
    """The head as `--no-door` and the application behind the door understand it; None when they refuse it."""
    parser = StrictParser()
    parser.receive_data(data)
    try:
        request = parser.next_event()
    except h11.RemoteProtocolError:
        return None
    assert isinstance(request, h11.Request)
    path, _, query = request.target.partition(b"?")
    version, fields = request.http_version.decode(), tuple(request.headers)
    members = {"method": request.method.decode(), "http_version": version, "path": unquote(path.decode())}
    head = Head(cast(HTTPScope, members | {"query_string": query, "headers": fields}))
    if head.fault() is not None:
        return None
    expects = parser.they_are_waiting_for_100_continue
    return request.method, request.target, version, fields, head.length, expects


@EXAMPLES
@given(heads())
@example(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: lo\x19calhost\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nExpect: x\r\n\r\n")
def test_f1_both_parsers_take_the_same_heads_and_understand_them_alike(data: bytes) -> None:
    """F1"""
    head = read_head(data, judge(Access(allowed_hosts=frozenset("*"))))
    if not head.target:
        assert by_h11(data) is None
    else:
        fields = tuple(field for field in head.fields if field[0] != b"upgrade")
        assert by_h11(data) == (head.method, head.target, head.version, fields, head.length, head.expects_continue)


@EXAMPLES
@given(heads())
def test_a_judgement_depends_on_the_bytes_alone(data: bytes) -> None:
    remembered = functools.lru_cache(partial(read_head, judge=judge()))
    first = remembered(data)
    read_head(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", judge())
    assert remembered(bytes(data)) is first
    assert read_head(data, judge()) == first
    assert hash(first) == hash(read_head(data, judge()))


# Bodies


def decode(data: bytes, cuts: list[int]) -> tuple[bytes, bool, int] | None:
    """Body, whether it is complete, and how many bytes belong to it; None for a bad one. Fed in pieces."""
    chunks, body, used = Chunks(), b"", 0
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if chunks.complete:
            break
        try:
            piece, taken = chunks.take(b"xx" + data[begin:end], 2)
        except BadBody:
            return None
        body += piece
        used += taken - 2
    return body, chunks.complete, used


def by_h11_decoded(data: bytes) -> tuple[bytes, bool, int] | None:
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    body = b""
    try:
        while (event := parser.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return body, True, len(data) - len(parser.trailing_data[0])
    except h11.RemoteProtocolError:
        return None
    return body, False, len(data)


def test_the_shortest_chunks_are_not_taken_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """F6: ten clients that sent them held everybody up for 5 s."""
    lines: list[bytes] = []
    take_line = Chunks._take_line

    def noting(chunks: Chunks, data: bytes, at: int) -> int:
        lines.append(data[at:])
        return take_line(chunks, data, at)

    monkeypatch.setattr(Chunks, "_take_line", noting)
    chunks = Chunks()
    assert chunks.take(b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n", 0)[0] == b"x" * 10_000
    assert chunks.complete
    assert lines == [b"0\r\n\r\n", b"\r\n"]


@st.composite
def chunked_bodies(draw: st.DrawFn) -> bytes:
    """Bodies in chunks, some of them spoilt, some with something behind them."""
    extensions = st.sampled_from([b"", b"", b";a=b", b'; a = "b"', b" "])
    data = b""
    for chunk in draw(st.lists(st.text("ab\r\n0;:", min_size=1, max_size=20), max_size=4)):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % len(chunk)
        data += size + draw(extensions) + b"\r\n" + chunk.encode() + b"\r\n"
    data += draw(st.sampled_from([b"0", b"000", b"0;a"])) + b"\r\n"
    data += draw(st.sampled_from([b"", b"", b"X: y\r\n", b"X:\r\nY: z\r\n"])) + b"\r\n"
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(SPLICES) + data[at + draw(st.integers(0, 2)) :]
    return data + draw(st.sampled_from([b"", b"POST / HTTP/1.1\r\n\r\n", b"\r\n\r\n", b"x"]))


@EXAMPLES
@given(chunked_bodies(), st.data())
def test_every_split_of_a_chunked_body_gives_the_same(data: bytes, more: st.DataObject) -> None:
    whole = decode(data, [])
    assert decode(data, list(range(1, len(data)))) == whole
    cuts = sorted(more.draw(st.sets(st.integers(0, len(data)), max_size=5)))
    assert decode(data, cuts) == whole


@EXAMPLES
@given(chunked_bodies())
def test_f1_what_is_taken_as_chunks_h11_takes_too_and_alike(data: bytes) -> None:
    """F1: the door is stricter: no bare CR or LF in extensions and trailers, no folded trailers."""
    ours = decode(data, [])
    if ours is not None and ours[1]:
        assert by_h11_decoded(data) == ours


def test_f1_what_is_behind_the_end_of_a_body_is_not_taken() -> None:
    """F1"""
    body = b"3;ext\r\nabc\r\n2\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n"
    assert decode(body + b"\r\n\r\nPOST / HTTP/1.1\r\n\r\n", []) == (b"abc\r\n", True, len(body))
    incoming = IncomingBody(head_of(b"Content-Length: 3"))
    assert incoming.take(b"..abcdef", 2) == (b"abc", 5)
    assert incoming.complete


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"zz\r\n",
            b"\r\n",
            b"-1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"1_0\r\n",
            b"1\n",
            b"1\r\r\n",
            b"11111111111111111\r\n",
        ),
        *(b"1\r\nabc", b"1\r\na\n", b"1\r\na\rb", b"1;\x00\r\n", b"1;a\nb\r\n"),
        *(b"0\r\nX\r\n", b"0\r\nX: y\n", b"0\r\n X: y\r\n", b"0\r\nX: y\r\n z\r\n", b"0\r\n\n"),
    ],
)
def test_f1_what_is_no_chunk_is_refused(data: bytes) -> None:
    """F1"""
    assert decode(data + b"\r\n0\r\n\r\n", []) is None


@pytest.mark.parametrize("line", [b"1;%b\r\na\r\n", b"0\r\nX: %b\r\n"], ids=["extension", "trailer"])
def test_f1_extensions_and_trailers_are_bounded_whatever_packets_they_come_in(line: bytes) -> None:
    """F1: those that never end are refused before they do."""
    fits, too_long = line % (b"x" * (CHUNK_BYTES_MAX - 10)), line % (b"x" * (CHUNK_BYTES_MAX + 40))
    end = b"\r\n" if line.startswith(b"0") else b"0\r\n\r\n"
    for cuts in ([], [500], list(range(1, 900))):
        assert decode(fits + end, cuts) is not None
        assert decode(too_long + end, cuts) is None
    assert decode(b"1;" + b"x" * (CHUNK_BYTES_MAX + 40), []) is None
    many = line % (b"x" * 90)
    assert decode(many * (CHUNK_BYTES_MAX // 50), []) is None


def test_f1_what_is_no_chunk_is_refused_before_its_line_ends() -> None:
    """F1: else the client would have to wait for its answer until it has run out of time."""
    for bad in (b"1\r\na??", b"1\r\na\r?", b"??", b"1?", b"11111111111111111"):
        assert decode(bad, []) is None
    for begun in (b"1\r\na\r", b"1\r\na", b"1\r", b"1", b"1;", b"1;ext", b"0\r\n", b"0\r\nTrailer"):
        assert decode(begun, []) is not None


def test_chunks_of_one_byte_are_taken() -> None:
    assert decode(b"1\r\na\r\n" * 5000 + b"0\r\n\r\n", []) == (b"a" * 5000, True, 30_005)
