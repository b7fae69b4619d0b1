"""Where a Redis is: what `--engine` takes, and that no password is shown."""

from __future__ import annotations

import pytest

from engine.redis.endpoint import Address, Endpoint, EndpointError, parse_endpoint


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("redis://host", Endpoint((Address("host", 6379),))),
        ("redis://host:7000/", Endpoint((Address("host", 7000),))),
        ("REDIS://Host:7000", Endpoint((Address("Host", 7000),))),
        ("redis://10.0.0.1:1,b:65535,c", Endpoint((Address("10.0.0.1", 1), Address("b", 65535), Address("c", 6379)))),
        ("redis://a,a:6379,a:6380", Endpoint((Address("a", 6379), Address("a", 6380)))),
        ("redis://[::1]:7000,[fe80::1]", Endpoint((Address("::1", 7000), Address("fe80::1", 6379)))),
        ("redis://a/3", Endpoint((Address("a", 6379),), database=3)),
        ("rediss://a", Endpoint((Address("a", 6379),), tls=True)),
        ("redis://:secret@a", Endpoint((Address("a", 6379),), password="secret")),
        ("redis://me:secret@a,b", Endpoint((Address("a", 6379), Address("b", 6379)), "me", "secret")),
        ("redis://me:p%40s%2Fs%3A%23%C3%A9@a", Endpoint((Address("a", 6379),), "me", "p@s/s:#é")),
        ("redis://:a@b@c", Endpoint((Address("c", 6379),), password="a@b")),
    ],
)
def test_a_url_is_read(url: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(url) == endpoint


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "expected redis://"),
        ("redis://:\udcff@a", "not in UTF-8"),
        ("redis://a:" + "9" * 5_000, "a port is a number from 1 to 65535"),
        ("localhost:6379", "expected redis://"),
        ("http://a", "expected redis://"),
        ("redis://", "a host is missing"),
        ("redis://a,,b", "a host is missing"),
        ("redis://:7000", "a host is missing"),
        ("redis://a:", "a port is a number"),
        ("redis://a:0", "a port is a number"),
        ("redis://a:65536", "a port is a number"),
        ("redis://a:1e3", "a port is a number"),
        ("redis://a:²", "a port is a number"),
        ("redis://::1", "in brackets"),
        ("redis://a/x", "a database is a number"),
        ("redis://a/1/2", "a database is a number"),
        ("redis://a/123456", "a database is a number"),
        ("redis://a?ssl=true", "no options"),
        ("redis://a#b", "no options"),
        ("redis://me@a", "a name without a password"),
        ("redis://[::1", "not a URL"),
    ],
)
def test_what_is_no_such_url_is_refused_with_a_reason(url: str, says: str) -> None:
    with pytest.raises(EndpointError, match=says):
        parse_endpoint(url)


@pytest.mark.parametrize(
    "url",
    ["redis://me:se/cret@a", "redis://me:se?cret@a", "redis://me:se#cret@a", "redis://me:secret@a/cret", "redis://:secret@a:cret"],
)  # fmt: skip
def test_no_message_holds_a_piece_of_the_password(url: str) -> None:
    with pytest.raises(EndpointError) as refused:
        parse_endpoint(url)
    assert "cret" not in str(refused.value)


def test_an_endpoint_is_shown_without_name_and_password() -> None:
    endpoint = parse_endpoint("rediss://me:secret@a,[::1]:7000/2")
    assert str(endpoint) == "rediss://a:6379,[::1]:7000/2"
    assert "secret" not in repr(endpoint)
    assert "me" not in repr(endpoint)


def test_what_connections_are_made_with() -> None:
    options = parse_endpoint("rediss://me:secret@a/2").connection_options()
    assert (options["username"], options["password"], options["db"]) == ("me", "secret", 2)
    assert options["ssl_context"].check_hostname
    assert parse_endpoint("redis://a").connection_options()["ssl_context"] is None
