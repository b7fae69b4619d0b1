"""Options that several commands have, and what holds for the options of all of them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from api.server.settings import read_token
from engine.redis.endpoint import Endpoint, EndpointError, parse_endpoint

_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_PORT_MAX = 65_535

SHOWN_CHARACTERS_MAX = 100


class Command(click.Command):
    """A command that refuses an option given twice when it takes one value: the first would be lost without a word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes the words of the command line apart.

        Raises:
            click.UsageError: they do not fit.
        """
        if args or not self.no_args_is_help:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for option in self.params:
                is_single = isinstance(option, click.Option) and not (option.multiple or option.is_flag or option.count)
                if is_single and given.count(option) > 1:
                    raise click.UsageError(
                        f"{option.opts[0]} takes one value, and was given {given.count(option)}", ctx
                    )
        return super().parse_args(ctx, args)


def directory(text: str) -> Path:
    """Reads the path of a directory that need not exist."""
    if not text:
        raise click.BadParameter("the path is empty; the current directory is written as a dot: .")
    return Path(text)


def address(text: str) -> tuple[str, int]:
    """Splits an address: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`."""
    host, colon, port = text.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= len(str(_PORT_MAX)) and int(port) <= _PORT_MAX
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else None
    if "//" in text:
        raise click.BadParameter(f"{_shown(text)} is not HOST:PORT; leave the scheme and the path out")
    if bare is None and (_is_ipv6(text) or _is_ipv6(host)):
        raise click.BadParameter(f"{_shown(text)}: an IPv6 address stands in brackets, like [::1]:8080")
    if colon and is_port and host in ("", "*"):
        raise click.BadParameter(f"{_shown(text)} names no host; every address is 0.0.0.0:{port}, or [::]:{port}")
    if not (colon and is_port and (_is_ipv6(bare) if bare is not None else _NAME.fullmatch(host))):
        raise click.BadParameter(f"{_shown(text)} is not HOST:PORT, like 127.0.0.1:8080 or [::1]:8080")
    return host if bare is None else bare, int(port)


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6  # of the protocol
    except ValueError:
        return False


def _shown(text: str) -> str:
    """What somebody wrote, as it can be printed anywhere, and not all of it if that is much."""
    return ascii(text) if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]!a}..."


def endpoint(url: str) -> Endpoint:
    """Reads the URL of a Redis; what is wrong with one is said without repeating it, for the password's sake."""
    try:
        return parse_endpoint(url)
    except EndpointError as error:
        raise click.BadParameter(str(error)) from None


def token(text: str) -> str:
    """Reads a token; what is wrong with one is said without repeating it."""
    try:
        return read_token(text)
    except ValueError as error:
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
    return click.option("--token", type=token, metavar="TOKEN", envvar="HOLDFAST_TOKEN", show_envvar=True, help=text)
