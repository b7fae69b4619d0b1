"""What is refused by the head of a request alone, and with which words: pure tables, one row per case."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypercorn.typing import HTTPScope

from api.dialects.answers import Answer
from api.http.access import Access
from api.http.head import Head
from api.http.judge import Judge

JUDGE = Judge(Access(), 1000)

HOST = (b"host", b"localhost")


def refusal(method: str, path: str, *fields: tuple[bytes, bytes], judge: Judge = JUDGE) -> Answer | None:
    members = {"method": method, "path": path, "http_version": "1.1", "query_string": b"", "headers": [HOST, *fields]}
    scope = cast(HTTPScope, members)
    head = Head(scope)
    assert head.fault() is None
    return judge.refusal(scope, head)


def refused(method: str, path: str, *fields: tuple[bytes, bytes], judge: Judge = JUDGE) -> tuple[int, Any]:
    answer = refusal(method, path, *fields, judge=judge)
    assert answer is not None
    return answer.status, json.loads(answer.body)


@pytest.mark.parametrize(
    ("methods", "path"),
    [
        *(("POST", path) for path in ("/", "/pipeline", "/multi", "/checkpoint")),
        *(("GET HEAD", path) for path in ("/livez", "/readyz", "/stats")),
    ],
)
def test_f8_each_path_takes_its_methods_and_names_them_to_all_others(methods: str, path: str) -> None:
    """F8"""
    for method in methods.split():
        assert refusal(method, path) is None
    for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "QUERY", "BREW"} - set(methods.split()):
        answer = refusal(method, path)
        assert answer is not None
        assert (answer.status, answer.allow) == (405, methods.replace(" ", ", "))
        members = json.loads(answer.body)
        assert members["error"] == "method not allowed"
        assert "POST" in members["detail"] or path in members["detail"]


def test_a_browser_that_looks_at_the_root_is_told_how_to_send_a_command() -> None:
    status, members = refused("GET", "/")
    assert status == 405
    assert members["detail"] == (
        "this is Holdfast, a key-value store with queues: send commands here by POST,"
        """ such as curl -d '{"command": "PING"}' URL"""
    )


@pytest.mark.parametrize("path", ["/nothing", "/livez/", "/POST", "/PIPELINE", "/get/foo"])
def test_f8_other_paths_are_not_found_and_the_detail_names_those_for_commands(path: str) -> None:
    """F8"""
    detail = "commands go by POST to /, /pipeline and /multi"
    for method in ("GET", "POST", "OPTIONS"):
        assert refused(method, path) == (404, {"error": "not found", "detail": detail})


def test_the_error_itself_says_that_the_path_of_another_product_is_not_spoken() -> None:
    status, members = refused("POST", "/multi-exec")
    assert status == 404
    assert members["error"] == (
        "not found: the REST API of Upstash is not spoken here yet; an atomic batch goes to /multi"
    )


@pytest.mark.parametrize("coding", [b"gzip", b"GZIP", b"deflate", b"br", b"zstd", b"x", b"gzip, identity"])
def test_a_compressed_body_is_refused_and_the_detail_says_what_is_taken(coding: bytes) -> None:
    for path in ("/", "/pipeline", "/multi"):
        assert refused("POST", path, (b"content-encoding", coding)) == (
            415,
            {
                "error": "unsupported media type",
                "detail": "a body is taken uncompressed only: send it without Content-Encoding",
            },
        )
    two = ((b"content-encoding", b"identity"), (b"content-encoding", coding))
    assert refused("POST", "/", *two)[0] == 415


def test_a_body_that_says_that_it_is_not_compressed_is_taken() -> None:
    for coding in (b"identity", b"Identity", b""):
        assert refusal("POST", "/", (b"content-encoding", coding)) is None
    assert refusal("GET", "/livez", (b"content-encoding", b"gzip")) is None


def test_who_may_not_speak_learns_nothing_of_paths_methods_and_limits() -> None:
    judge = Judge(Access(token="secret"), 1000)
    long = (b"content-length", b"1001")
    for method, path in (("POST", "/"), ("POST", "/nothing"), ("GET", "/"), ("GET", "/stats")):
        assert refused(method, path, long, (b"content-encoding", b"gzip"), judge=judge)[0] == 401
    assert refusal("GET", "/livez", judge=judge) is None


def test_f6_the_longest_body_is_taken_and_a_longer_one_is_not() -> None:
    """F6"""
    assert refusal("POST", "/", (b"content-length", b"1000")) is None
    assert refused("POST", "/", (b"content-length", b"1001"))[0] == 413


@pytest.mark.parametrize(
    ("host", "faulty"),
    [
        *((host, False) for host in (b"localhost", b"a_b.example:1", b"[::1]:80", b"localhost:", b"x" * 300, b"")),
        *((host, True) for host in (b"a b", b"a/b", b"u@a", b"::1", b"[::1", b"[zz]", b"a:99999", b"a:1:1", b"\xe9")),
        *((host, True) for host in (b"a,b", b"a%20b", b":80", b"a?b", b"http://a")),
    ],
)
def test_a_host_header_that_is_malformed_is_not_to_be_trusted(host: bytes, faulty: bool) -> None:
    members = {"method": "GET", "path": "/", "http_version": "1.1", "query_string": b"", "headers": [(b"host", host)]}
    fault = Head(cast(HTTPScope, members)).fault()
    expected = "expected a Host header of the form NAME, NAME:PORT or [ADDRESS]:PORT"
    assert fault == ((400, "invalid request", expected) if faulty else None)
