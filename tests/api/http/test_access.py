"""Who is let in: pure tables, one row per case. F9."""

from __future__ import annotations

import pytest

from api.http.access import Access, Refusal, read_allowed_host, read_token, split_authority

Headers = list[tuple[bytes, bytes]]


def host(value: str) -> Headers:
    return [(b"host", value.encode("latin-1"))]


def status(access: Access, headers: Headers, path: str = "/") -> int | None:
    refusal = access.check(path, headers)
    return None if refusal is None else refusal.status


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "LocalHost:8080",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.3.2.1:1",
        "[::1]:8080",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ],
)
def test_loopback_names_are_always_taken(name: str) -> None:
    assert status(Access(bound_host="192.0.2.7"), host(name)) is None


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "foo.localhost",
        "192.0.2.7",
        "[2001:db8::1]",
        "0.0.0.0",
        "",
        ":80",
        "localhost:",
        "localhost:99999",
        "localhost:80:80",
        "local host",
        "localhost,evil.example",
        "user@localhost",
        "[::1",
        "::1",
        "[localhost]",
        "localhost/",
        "2130706433",
        "127.1",
        "\xe9",
    ],
)
def test_other_and_malformed_hosts_are_refused_on_a_loopback_bind(name: str) -> None:
    expected = None if name == "localhost:" else 403  # an empty port is the default port (RFC 3986)
    assert status(Access(bound_host="127.0.0.1"), host(name)) == expected


def test_the_refusal_names_the_option_and_escapes_what_was_sent() -> None:
    refusal = Access().check("/", host("evil\x1b[31m" + "x" * 500))
    assert isinstance(refusal, Refusal)
    assert refusal.error == "forbidden"
    assert "--allow-host" in refusal.detail
    assert "\x1b" not in refusal.detail
    assert len(refusal.detail) < 250


@pytest.mark.parametrize(
    ("access", "name", "passes"),
    [
        (Access(bound_host="db.example"), "DB.example:8080", True),
        (Access(bound_host="192.0.2.7"), "192.0.2.7:8080", True),
        (Access(bound_host="192.0.2.7"), "192.0.2.8", False),
        (Access(bound_host="[2001:db8::1]"), "[2001:0db8::1]", True),
        (Access(bound_host="2001:db8::1"), "[2001:db8::1]:1", True),
        (Access(bound_host="0.0.0.0"), "192.0.2.7", True),
        (Access(bound_host="::"), "[2001:db8::1]", True),
        (Access(bound_host=""), "192.0.2.7", True),
        (Access(bound_host="0.0.0.0"), "evil.example", False),
        (Access(allowed_hosts=frozenset({"Db.Example"})), "db.example:443", True),
        (Access(allowed_hosts=frozenset({"db.example:8080"})), "db.example", True),
        (Access(allowed_hosts=frozenset({"10.0.0.1"})), "10.0.0.1", True),
        (Access(allowed_hosts=frozenset({"db.example"})), "x.db.example", False),
        (Access(allowed_hosts=frozenset({"*"})), "anything.example", True),
        (Access(allowed_hosts=frozenset({"*.Example"})), "db.EXAMPLE:8080", True),
        (Access(allowed_hosts=frozenset({"*.example"})), "a.db.example.", True),
        (Access(allowed_hosts=frozenset({"*.example"})), "example", False),
        (Access(allowed_hosts=frozenset({"*.example"})), "evilexample", False),
        (Access(allowed_hosts=frozenset({"*.example"})), "db.example.evil", False),
        (Access(allowed_hosts=frozenset({"*.example"})), ".example", False),
        (Access(bound_host="::"), "[::ffff:192.0.2.7]", True),
        # What nginx sends when proxy_set_header says nothing: the name in proxy_pass, which need not be ours.
        (Access(), "127.0.0.1:8080", True),
        (Access(), "holdfast_backend", False),
        (Access(allowed_hosts=frozenset({"holdfast_backend"})), "holdfast_backend", True),
        (Access(allowed_hosts=frozenset({"*"})), "any thing", False),
    ],
)
def test_the_bound_and_the_allowed_hosts_are_taken(access: Access, name: str, passes: bool) -> None:
    assert status(access, host(name)) == (None if passes else 403)


def test_http_1_0_without_a_host_passes_and_two_hosts_do_not() -> None:
    assert status(Access(), []) is None
    assert status(Access(), host("localhost") + host("localhost")) == 403


@pytest.mark.parametrize(
    ("origin", "name", "passes"),
    [
        ("http://localhost:8080", "localhost:8080", True),
        ("HTTP://LOCALHOST:8080", "localhost:8080", True),
        ("http://localhost", "localhost:80", True),
        ("https://localhost", "localhost", True),
        ("https://localhost", "localhost:443", True),
        ("http://localhost", "localhost:8080", False),
        ("http://localhost:3000", "localhost:8080", False),
        ("http://127.0.0.1:8080", "localhost:8080", False),
        ("http://evil.example", "localhost:8080", False),
        ("http://localhost:8080.evil.example", "localhost:8080", False),
        ("http://localhost:8080@evil.example", "localhost:8080", False),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("null", "localhost:8080", False),
        ("", "localhost:8080", False),
        ("file://", "localhost:8080", False),
        ("moz-extension://localhost:8080", "localhost:8080", False),
    ],
)
def test_a_page_may_only_write_to_where_it_came_from(origin: str, name: str, passes: bool) -> None:
    headers = [*host(name), (b"origin", origin.encode())]
    assert status(Access(), headers) == (None if passes else 403)


@pytest.mark.parametrize(
    ("sites", "passes"),
    [
        ([], True),
        ([b"same-origin"], True),
        ([b"none"], True),
        ([b"cross-site"], False),
        ([b"same-site"], False),
        ([b"same-origin", b"cross-site"], False),
        ([b"x"], False),
    ],
)
def test_a_page_with_tls_passes_as_through_a_proxy_unless_its_browser_says_that_it_came_from_elsewhere(
    sites: list[bytes], passes: bool
) -> None:
    """`https://localhost`, and not port 80 of it: to us both look alike, to the browser they do not."""
    headers = [*host("localhost"), (b"origin", b"https://localhost"), *((b"sec-fetch-site", site) for site in sites)]
    assert status(Access(), headers) == (None if passes else 403)


def test_a_browser_that_follows_a_link_from_elsewhere_may_look() -> None:
    assert status(Access(), [*host("localhost"), (b"sec-fetch-site", b"cross-site")]) is None


def test_two_origins_or_an_origin_without_a_host_are_refused() -> None:
    origin = (b"origin", b"http://localhost")
    assert status(Access(), [*host("localhost"), origin, origin]) == 403
    assert status(Access(), [origin]) == 403


@pytest.mark.parametrize(
    ("credentials", "passes"),
    [
        ([b"Bearer s3cret"], True),
        ([b"bearer s3cret"], True),
        ([b"Bearer  s3cret "], True),
        ([], False),
        ([b"Bearer wrong"], False),
        ([b"Bearer"], False),
        ([b"Bearer "], False),
        ([b"s3cret"], False),
        ([b"Basic s3cret"], False),
        ([b"Bearer s3cret", b"Bearer s3cret"], False),
        ([b"Bearer s3cret\xff"], False),
        ([b"Bearer s3cret x"], False),
    ],
)
def test_the_token_is_asked_for(credentials: list[bytes], passes: bool) -> None:
    headers = host("localhost") + [(b"authorization", value) for value in credentials]
    refusal = Access(token="s3cret").check("/", headers)
    assert (refusal is None) == passes
    if refusal is not None:
        assert (refusal.status, refusal.error) == (401, "unauthorized")
        assert "s3cret" not in refusal.detail


def test_the_probes_need_no_token_and_statistics_do() -> None:
    access = Access(token="s3cret")
    assert status(access, host("localhost"), "/livez") is None
    assert status(access, host("localhost"), "/readyz") is None
    assert status(access, host("localhost"), "/stats") == 401
    assert status(access, host("evil.example"), "/livez") == 403


def test_without_a_token_everybody_may_speak_who_came_by_a_known_name() -> None:
    assert status(Access(), [*host("localhost"), (b"authorization", b"whatever")]) is None


def test_an_authority_is_split_or_malformed() -> None:
    assert split_authority("Example.COM.:80") == ("example.com", 80)
    assert split_authority("[::1]") == ("::1", None)
    assert split_authority("[zz]") is None
    assert split_authority("a b") is None


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("app.example.com", "app.example.com"),
        ("app.example.com:8080", "app.example.com:8080"),
        ("holdfast_backend", "holdfast_backend"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("[::1]:80", "[::1]:80"),
        ("*", "*"),
        ("*.example", "*.example"),
        ("*.Example.:80", "*.example"),
    ],
)
def test_names_addresses_and_suffixes_may_be_allowed(text: str, read: str) -> None:
    assert read_allowed_host(text) == read


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("a,b", "names are given one by one: --allow-host a --allow-host b; in HOLDFAST_ALLOW_HOST spaces"),
        ("a; b", "names are given one by one: --allow-host a --allow-host b;"),
        ("a,", "names are given one by one: --allow-host a;"),
        ("https://a", "a name is meant, without scheme and path: a"),
        ("https://me:secret@a.example:80/x", "a name is meant, without scheme and path: a.example:80"),
        ("a/b", "a name is meant, without scheme and path: a"),
        ("10.0.0.0/8", "one address is meant, not a network: 10.0.0.0; a server bound to 0.0.0.0 takes every address"),
        ("*.", "* stands alone, or for what comes before the first dot, like *.example.com"),
        ("*example", "* stands alone"),
        ("a.*", "* stands alone"),
        ("*.*.example", "* stands alone"),
        ("*.10.0.0.1", "* stands alone"),
        ("b\xfccher.example", "names travel in ASCII: xn--bcher-kva.example"),
        ("\uff4cocalhost", "names travel in ASCII: localhost"),
        ("", "it is not a name or an address"),
        ("a..b", "it is not a name or an address"),
        (".a", "it is not a name or an address"),
        ("a:b", "it is not a name or an address"),
        ("a\udc80", "it is not a name or an address"),
        ("\xfc" * 100, "it is not a name or an address"),
    ],
)
def test_what_no_host_header_ever_is_cannot_be_allowed(text: str, advice: str) -> None:
    with pytest.raises(ValueError) as caught:  # the text is looked at
        read_allowed_host(text)
    assert str(caught.value).startswith(advice)


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "an empty token protects nothing"),
        ("secret\n", "character 7, the last, is a line break"),
        ("secret\r\n", "character 7 is a carriage return"),
        ("se cret", "character 3 is a space"),
        ("\tsecret", "character 1 is a tab"),
        ("secret\x7f", "character 7, the last, is a control character"),
        ("secr\xe9t", "character 5 is beyond ASCII"),
        ("secret\udcff", "character 7, the last, is beyond ASCII"),
    ],
)
def test_a_token_that_no_client_can_send_is_refused_without_repeating_it(token: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:  # the text is looked at
        read_token(token)
    assert str(caught.value).startswith(why)
    assert "secr" not in str(caught.value)


def test_every_other_token_is_taken_as_it_is() -> None:
    every = "".join(map(chr, range(0x21, 0x7F)))
    assert read_token(every) == every
    assert status(Access(token=every), [*host("localhost"), (b"authorization", f"Bearer {every}".encode())]) is None
