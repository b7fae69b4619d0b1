"""Where a Redis is, and how to get in: what `--engine redis://...` says."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

DEFAULT_PORT = 6379


class EndpointError(ValueError):
    """A URL that names no Redis; the message says what is wrong, and holds no password."""


class Address(NamedTuple):
    """A node's name or IP address, and its port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A Redis Cluster, or one Redis with its replicas.

    Attributes:
        addresses: of some nodes; the others are asked for.
        username: None is the default user.
        password: None is none.
        database: number of the database; a cluster has 0 only.
        tls: whether nodes are spoken to by TLS, with the system's certificates.
    """

    addresses: tuple[Address, ...]
    username: str | None = None
    password: str | None = None
    database: int = 0
    tls: bool = False

    def __str__(self) -> str:
        """The URL without name and password, fit for logs."""
        path = f"/{self.database}" if self.database else ""
        return f"{'rediss' if self.tls else 'redis'}://{','.join(map(str, self.addresses))}{path}"

    def __repr__(self) -> str:
        return f"Endpoint({self})"

    def connection_options(self) -> dict[str, Any]:
        """What every connection to a node is made with, as coredis names it."""
        return {
            "username": self.username,
            "password": self.password,
            "db": self.database,
            "ssl_context": ssl.create_default_context() if self.tls else None,
        }


def parse_endpoint(url: str) -> Endpoint:
    """Reads `redis[s]://[[user]:password@]host[:port][,host[:port]...][/database]`.

    Args:
        url: as given by the user; percent signs in name and password are decoded.

    Returns:
        The endpoint.

    Raises:
        EndpointError: it is no such URL.
    """
    try:
        url.encode()  # what is not UTF-8 comes as surrogates, which no connection takes
        parts = urlsplit(url)
    except ValueError:
        raise EndpointError("not a URL, or not in UTF-8") from None
    if parts.scheme not in ("redis", "rediss"):
        raise EndpointError("expected redis://host[:port][,host[:port]...]")
    if parts.query or parts.fragment:
        raise EndpointError("a Redis URL has no options behind the database")
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, colon, password = credentials.partition(":")
    if credentials and not colon:
        raise EndpointError("a name without a password: expected redis://user:password@host, or redis://:password@host")
    return Endpoint(
        addresses=tuple(dict.fromkeys(_address(host) for host in hosts.split(","))),
        username=unquote(username) or None,
        password=unquote(password) or None,
        database=_database(parts),
        tls=parts.scheme == "rediss",
    )


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise EndpointError("an IPv6 address is written in brackets, redis://[::1]:6379")
    if not host:
        raise EndpointError("a host is missing, expected redis://host[:port][,host[:port]...]")
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise EndpointError("a port is a number from 1 to 65535 (and a / in a password is written %2F)")
    return Address(host, int(port))


def _database(parts: SplitResult) -> int:
    number = parts.path.removeprefix("/")
    if not number:
        return 0
    if not (number.isascii() and number.isdigit() and len(number) < 6):
        raise EndpointError("a database is a number (and a / in a password is written %2F)")
    return int(number)
