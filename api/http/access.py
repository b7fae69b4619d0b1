"""Who may speak to the server: the token, the Origin and the Host of a request. Pure.

Three checks, each against another attacker:

- **Host** against DNS rebinding: a page the user visits makes its own name point to 127.0.0.1 and then
  reads from here as "same origin". The name it came by gives it away, so only names we know are taken.
- **Origin** against cross-site posts: a browser lets any page post a form or plain text to any address,
  and bodies are parsed whatever their content type. A browser always says where such a post comes from.
- **Token** against everybody else who can reach the port.

The rules that hold here:

- No I/O and no clock; headers come in as ASGI has them, lower-case names and bytes.
- What cannot be understood is refused, never waved through.
- The token is compared in constant time and appears in no message; neither does anything that was sent
  except a host or origin, escaped and shortened.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from api.http.probes import PROBES

LOOPBACK_NAME = "localhost"

ANY_HOST = "*"
"""In `allowed_hosts`: takes every Host header, for a server behind a proxy that checks it."""

_ANY_LABEL = "*."
"""Before a name in `allowed_hosts`: takes every name that ends with the rest, but not the rest itself."""

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::([0-9]{1,5})?)?")
_ORIGIN = re.compile(r"(https?)://([^/?#@]+)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_OWN_SITES = {b"same-origin", b"none"}
"""Of `Sec-Fetch-Site`, where a browser sends it: it knows whether there was TLS between it and a proxy, and we do not.
So `https://localhost` passes with `Host: localhost`, as through a proxy with TLS; but not a page of another server at
port 443 that writes to port 80."""

_HOSTS_REMEMBERED = 256
_SHOWN_CHARACTERS_MAX = 80


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request may not pass: `status` 401 or 403, the fixed error text, and one line for a person."""

    status: int
    error: str
    detail: str


@dataclass(frozen=True, slots=True)
class Access:
    """What is let in.

    Attributes:
        token: asked for as `Authorization: Bearer`; None lets everybody in.
        bound_host: the address or name the server was told to listen on.
        allowed_hosts: further names a Host header may have, as `read_allowed_host` returns them; `*` takes all.
    """

    token: str | None = None
    bound_host: str = "127.0.0.1"
    allowed_hosts: frozenset[str] = frozenset()

    def check(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
        """Judges one request.

        Args:
            path: as it is routed, without the query.
            headers: names in lower case.

        Returns:
            Why it may not pass, or None.
        """
        hosts: list[bytes] = []
        origins: list[bytes] = []
        credentials: list[bytes] = []
        sites: list[bytes] = []
        for name, value in headers:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origins.append(value)
            elif name == b"authorization":
                credentials.append(value)
            elif name == b"sec-fetch-site":
                sites.append(value)
        refusal = self._check_host(hosts) or _check_origin(origins, hosts, sites)
        if refusal is None and self.token is not None and path not in PROBES:
            refusal = _check_token(credentials, self.token)
        return refusal

    def _check_host(self, hosts: list[bytes]) -> Refusal | None:
        if not hosts:
            return None  # HTTP/1.0; a browser always sends one, so this is no page
        host = hosts[0].decode("latin-1")
        if len(hosts) == 1 and _host_passes(host, self.bound_host, self.allowed_hosts):
            return None
        return Refusal(
            403,
            "forbidden",
            f"the Host header {_show(host)} is not a name of this server; start it with --allow-host NAME to take it",
        )


def split_authority(authority: str) -> tuple[str, int | None] | None:
    """Splits `host:port`.

    Args:
        authority: as in a Host header; an IPv6 address stands in brackets.

    Returns:
        The host, lower case, without brackets and without the dot a full name may end in, and the port or
        None. None when malformed.
    """
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    host, port = match.groups()
    if port and int(port) > 65535:
        return None
    if host.startswith("["):
        return (host[1:-1].lower(), int(port) if port else None) if _address(host[1:-1]) else None
    return host.lower().removesuffix("."), int(port) if port else None


def read_allowed_host(text: str) -> str:
    """Reads what somebody wants to see in Host headers: a name, an address, `*.name`, or `*`.

    Raises:
        ValueError: no Host header will ever be that; the message says what to write instead.
    """
    if text == ANY_HOST or _address(text):
        return text
    name = text.removeprefix(_ANY_LABEL)
    if not _is_name(name) or (name != text and _address(_plain(name))):
        raise ValueError(_advice(text))
    return text if name == text else _ANY_LABEL + _plain(name)


def _is_name(text: str) -> bool:
    split = split_authority(text)
    return split is not None and all(split[0].split("."))


def _advice(text: str) -> str:
    """What to write instead of something that no Host header is."""
    parts = re.findall(r"[^,;\s]+", text)
    rest = text.rpartition("://")[2]
    name = rest.partition("/")[0].rpartition("@")[2]
    if parts and parts != [text]:
        several = " --allow-host ".join(parts)
        return f"names are given one by one: --allow-host {several}; in HOLDFAST_ALLOW_HOST spaces separate them"
    if "/" in rest and _address(name):
        return f"one address is meant, not a network: {name}; a server bound to 0.0.0.0 takes every address"
    if "/" in text:
        return f"a name is meant, without scheme and path{f': {name}' if _is_name(name) else ''}"
    if "*" in text:
        return "* stands alone, or for what comes before the first dot, like *.example.com"
    if not text.isascii():
        with contextlib.suppress(UnicodeError):
            return f"names travel in ASCII: {text.encode('idna').decode()}"
    return "it is not a name or an address, like app.example.com, 192.0.2.7 or *.example.com"


def read_token(text: str) -> str:
    """Reads a token that clients are to send in a header.

    Raises:
        ValueError: no client can send it; the message does not repeat it.
    """
    if not text:
        raise ValueError("an empty token protects nothing")
    for number, character in enumerate(text, 1):
        if not "!" <= character <= "~":
            last = ", the last," if number == len(text) else ""
            raise ValueError(
                f"character {number}{last} is {_named(character)}, and no client can send that in a header;"
                " a token consists of visible ASCII characters"
            )
    return text


def _named(character: str) -> str:
    names = {" ": "a space", "\n": "a line break", "\r": "a carriage return", "\t": "a tab"}
    return names.get(character, "a control character" if character.isascii() else "beyond ASCII")


@functools.lru_cache(maxsize=_HOSTS_REMEMBERED)
def _host_passes(authority: str, bound_host: str, allowed_hosts: frozenset[str]) -> bool:
    split = split_authority(authority)
    if split is None:
        return False
    host = split[0]
    if ANY_HOST in allowed_hosts or host in (LOOPBACK_NAME, _plain(bound_host), *map(_plain, allowed_hosts)):
        return True
    if any(host.endswith(one[1:].lower()) and len(host) >= len(one) for one in allowed_hosts if one[:2] == _ANY_LABEL):
        return True
    address = _address(host)
    if address is None:
        return False
    if address.is_loopback or address in (_address(_plain(bound_host)), *map(_address, map(_plain, allowed_hosts))):
        return True
    # Rebinding needs a name; who wrote an address got here by that address.
    bound = _address(_plain(bound_host))
    return bound_host == "" or (bound is not None and bound.is_unspecified)


def _check_origin(origins: list[bytes], hosts: list[bytes], sites: list[bytes]) -> Refusal | None:
    if not origins:
        return None
    origin = origins[0].decode("latin-1")
    same_place = len(origins) == 1 and len(hosts) == 1 and _same_place(origin, hosts[0].decode("latin-1"))
    if same_place and set(sites) <= _OWN_SITES:
        return None
    return Refusal(403, "forbidden", f"requests of pages from the origin {_show(origin)} are not taken here")


def _same_place(origin: str, host: str) -> bool:
    """Tells whether an Origin names the host and port of a Host header; default ports may be left out."""
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return False  # "null" and foreign schemes too
    default_port = _DEFAULT_PORTS[match[1].lower()]
    there, here = split_authority(match[2]), split_authority(host)
    if there is None or here is None:
        return False
    return there[0] == here[0] and (there[1] or default_port) == (here[1] or default_port)


def _check_token(credentials: list[bytes], token: str) -> Refusal | None:
    if not credentials:
        return Refusal(401, "unauthorized", "send the token as 'Authorization: Bearer TOKEN'")
    scheme, _, sent = credentials[0].partition(b" ")
    if len(credentials) != 1 or scheme.lower() != b"bearer":
        return Refusal(401, "unauthorized", "the token is taken as 'Authorization: Bearer TOKEN' only")
    if hmac.compare_digest(sent.strip(b" "), token.encode()):
        return None
    return Refusal(401, "unauthorized", "the token is wrong")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _plain(host: str) -> str:
    """Brings a configured name to the form `split_authority` returns."""
    split = split_authority(host)
    return host.lower() if split is None else split[0]


def _show(text: str) -> str:
    shortened = text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."
    return ascii(shortened)
