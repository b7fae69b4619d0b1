"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from engine.redis.endpoint import Endpoint, EndpointError, parse_endpoint


def address(text: str) -> tuple[str, int]:
    """Splits an address: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise click.BadParameter(f"{text!r}: an IPv6 address stands in brackets, [::1]:8080")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise click.BadParameter(f"{text!r} is not HOST:PORT")
    return host, int(port)


def endpoint(url: str) -> Endpoint:
    """Reads the URL of a Redis; what is wrong with one is said without repeating it, for the password's sake."""
    try:
        return parse_endpoint(url)
    except EndpointError as error:
        raise click.BadParameter(str(error)) from None


def bind_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--bind`, with its help text."""
    return click.option(
        "--bind",
        type=address,
        default="127.0.0.1:8080",
        metavar="HOST:PORT",
        envvar="HOLDFAST_BIND",
        show_envvar=True,
        help=text,
    )


def token_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--token`, with its help text."""
    return click.option("--token", envvar="HOLDFAST_TOKEN", show_envvar=True, help=text)
