"""The command `holdfast serve`. Every option of it is also an environment variable, `HOLDFAST_<OPTION>`."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from api.cli.environment import complaints, refuse_empty
from api.cli.options import Command, bind_option, directory, endpoint, token_option
from api.server.allocator import give_memory_back
from api.server.log_lines import start_logging
from api.server.root import run
from api.server.settings import KEEP_ALIVE_S, ServerSettings, conflicts, read_allowed_host, size_text
from engine.embedded.committer import FsyncPolicy
from engine.limits import MIB, Limits
from engine.redis.endpoint import Endpoint
from wal.open_segment import ALLOCATE_BYTES_MIN

JSON_DEPTH_MAX_MAX = 500
"""Deeper nesting than this is no setting: Python's own stack is near."""

BODY_BYTES_MAX_MAX = 128 * MIB
"""A body becomes one frame of the log at the most, and frames are bounded."""

IDLE_TIMEOUT_S_MAX = 86_400
"""A day: a connection that is idle for longer is kept for nobody."""

SIZE_BYTES_MAX = (1 << 63) - 1
"""No file, and no memory, is longer."""

WORDS_MIN, DEPTH_MIN = 16, 4
"""With less, commands that everybody needs could not be written: `SET k v EX 60 NX`, `[{..., "options": {...}}]`."""

_SIZE = re.compile(r"([0-9]{1,15})\s*(|B|K|KB|KIB|M|MB|MIB|G|GB|GIB)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def size(text: str | int) -> int:
    """Reads a number of bytes: `4096`, `4KiB`, `16MiB`, `2GiB`."""
    if isinstance(text, int):
        return text  # a default
    match = _SIZE.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(f"{text!a} is not a size above 0, like 4096, 4KiB, 16MiB or 2GiB")
    count = int(match[1]) * _UNITS[match[2][:1].lower()]
    if count > SIZE_BYTES_MAX:
        raise click.BadParameter(f"{text!r} is more than any machine has")
    return count


def allowed_host(text: str) -> str:
    """Reads a name that Host headers may have."""
    try:
        return read_allowed_host(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!a}: {error}") from None


_logger = logging.getLogger("holdfast.server")

_COUNT = click.IntRange(min=1)

# option, field of Limits, type, metavar, help
_LIMIT_OPTIONS: tuple[tuple[str, str, Any, str, str], ...] = (
    ("key", "key_bytes_max", size, "SIZE", "Longest key."),
    ("value", "value_bytes_max", size, "SIZE", "Longest value."),
    ("body", "body_bytes_max", size, "SIZE", "Longest request body, at most 128 MiB."),
    ("bodies", "bodies_bytes_max", size, "SIZE", "Request bodies held in memory at once."),
    ("tokens", "tokens_max", click.IntRange(min=WORDS_MIN), "COUNT", "Words of one command."),
    ("depth", "json_depth_max", click.IntRange(DEPTH_MIN, JSON_DEPTH_MAX_MAX), "COUNT", "Nesting of a request body."),
    ("waiters", "waiters_max", _COUNT, "COUNT", "Clients parked by BQPOP at once."),
    ("mailbox", "mailbox_max", _COUNT, "COUNT", "Commands that wait for the engine at once."),
    ("batch", "batch_commands_max", _COUNT, "COUNT", "Commands of one pipeline."),
    ("unit", "unit_commands_max", _COUNT, "COUNT", "Commands of one atomic batch (/multi)."),
    ("answer", "answer_bytes_max", size, "SIZE", "Values read, or popped, by one pipeline or atomic batch."),
    ("memory", "memory_bytes_max", size, "SIZE", "Memory for keys and values; no cap by default."),
)


def _written(kind: object, default: int | None) -> int | str | None:
    """A default as a person would write it: sizes with their unit."""
    if default is None or kind is not size:
        return default
    return size_text(default)


def _limit_options(function: Callable[..., None]) -> Callable[..., None]:
    defaults = Limits()
    for name, field, kind, metavar, text in reversed(_LIMIT_OPTIONS):
        default = getattr(defaults, field)
        option = click.option(
            f"--max-{name}",
            field,
            type=kind,
            metavar=metavar,
            default=_written(kind, default),
            show_default=True,
            envvar=f"HOLDFAST_MAX_{name.upper()}",
            show_envvar=True,
            help=text,
        )
        function = option(function)
    return function


_EMBEDDED_ONLY = {
    "data": "Redis keeps the data",
    "fsync": "Redis decides when it syncs: its own appendfsync",
    "segment_bytes_max": "there is no log here",
    "memory_bytes_max": "the cap is Redis' own maxmemory",
}
"""Options that say nothing to a front, and what does."""


def _check_engine_options(context: click.Context) -> None:
    """Refuses what was given, on the command line or in the environment, and would have no effect."""
    with_redis = context.params["engine"] is not None
    for option in context.command.params:
        if _is_default(context, option.name or ""):
            continue
        source = context.get_parameter_source(option.name or "")
        hint = str(option.envvar) if source is ParameterSource.ENVIRONMENT else option.opts[0]
        if with_redis and option.name in _EMBEDDED_ONLY:
            raise click.BadParameter(f"not with --engine: {_EMBEDDED_ONLY[option.name]}", param_hint=hint)
        if not with_redis and option.name == "min_replicas":
            raise click.BadParameter("only with --engine: the embedded engine has no replicas", param_hint=hint)


def _limits(context: click.Context, given: dict[str, int | None]) -> Limits:
    """The limits, if what was given can work; defaults yield to it."""
    limits = dataclasses.replace(Limits(), **given)  # type: ignore[arg-type]  # the table names the fields
    if limits.body_bytes_max > BODY_BYTES_MAX_MAX:
        raise click.BadParameter("at most 128 MiB", context, param_hint="--max-body")
    if _is_default(context, "answer_bytes_max"):
        limits = dataclasses.replace(limits, answer_bytes_max=max(limits.answer_bytes_max, limits.value_bytes_max))
    names = {field: f"--max-{name}" for name, field, *_ in _LIMIT_OPTIONS}
    for field, why in conflicts(limits):
        if not _is_default(context, field):
            raise click.BadParameter(why, context, param_hint=names[field])
    return limits


def _is_default(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) not in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


@click.command("serve", cls=Command, context_settings={"show_default": True})
@click.option(
    "--data",
    type=directory,
    metavar="DIRECTORY",
    default=Path("data"),
    envvar="HOLDFAST_DATA",
    show_envvar=True,
    help="Data directory; made when it does not exist.",
)
@click.option(
    "--engine",
    type=endpoint,
    metavar="URL",
    envvar="HOLDFAST_ENGINE",
    show_envvar=True,
    help="Keep the data in Redis, and none here: redis[s]://[[user]:password@]host[:port][,host[:port]...]",
)
@click.option(
    "--min-replicas",
    type=click.IntRange(min=0),
    default=0,
    metavar="COUNT",
    envvar="HOLDFAST_MIN_REPLICAS",
    show_envvar=True,
    help="Replicas of Redis that must have a write before it is answered; with --engine.",
)
@bind_option("Address to listen on; port 0 takes a free one.")
@click.option(
    "--fsync",
    type=click.Choice([policy.value for policy in FsyncPolicy]),
    default=FsyncPolicy.ALWAYS.value,
    envvar="HOLDFAST_FSYNC",
    show_envvar=True,
    help="always: an answer means on disk. interval: at most 1 s of loss. never: the system decides.",
)
@token_option("Clients must send it: Authorization: Bearer TOKEN.")
@click.option(
    "--insecure",
    is_flag=True,
    envvar="HOLDFAST_INSECURE",
    show_envvar=True,
    help="Listen beyond loopback without a token.",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    type=allowed_host,
    multiple=True,
    metavar="NAME",
    envvar="HOLDFAST_ALLOW_HOST",
    show_envvar=True,
    help="A name that clients may use in the Host header besides the bound one; may be repeated. *.example.com is"
    " every name below example.com, * is any name.",
)
@click.option(
    "--idle-timeout",
    "idle_timeout_s",
    type=click.IntRange(1, IDLE_TIMEOUT_S_MAX),
    default=int(KEEP_ALIVE_S),
    metavar="SECONDS",
    envvar="HOLDFAST_IDLE_TIMEOUT",
    show_envvar=True,
    help="Close connections that are idle for so long; more than the proxies and clients before it keep theirs.",
)
@click.option(
    "--segment-size",
    "segment_bytes_max",
    type=size,
    metavar="SIZE",
    envvar="HOLDFAST_SEGMENT_SIZE",
    show_envvar=True,
    help="Size of a segment of the log, at least 64KiB; by default 64MiB, or 1/32 of a disk smaller than 2 GiB.",
)
@click.option(
    "--no-door",
    is_flag=True,
    envvar="HOLDFAST_NO_DOOR",
    show_envvar=True,
    help="Serve clients by Hypercorn alone, for looking into things: on loopback only, ten to thirty times slower.",
)
@_limit_options
@click.pass_context
def serve_command(
    context: click.Context,
    /,
    data: Path,
    engine: Endpoint | None,
    min_replicas: int,
    bind: tuple[str, int],
    fsync: str,
    token: str | None,
    insecure: bool,
    allowed_hosts: tuple[str, ...],
    idle_timeout_s: int,
    segment_bytes_max: int | None,
    no_door: bool,
    **limits: int | None,
) -> None:
    """Runs the server until SIGTERM or SIGINT.

    The data is kept here, in a directory; or with --engine in a Redis Cluster, and this is one of any number of fronts.

    Exit codes: 0 stopped, 1 cannot start, 2 bad options, 3 the log is damaged, 4 another server holds the data
    directory, 5 a write or sync of the log failed.
    """
    refuse_empty(os.environ, context)
    _check_engine_options(context)
    checked = _limits(context, limits)
    if segment_bytes_max is not None and segment_bytes_max < ALLOCATE_BYTES_MIN:
        raise click.BadParameter("at least 64KiB", param_hint="--segment-size")
    start_logging()
    give_memory_back()
    for complaint in complaints(os.environ, context.command):
        _logger.warning("%s", complaint)
    host, port = bind
    policy = FsyncPolicy(fsync)
    run(
        ServerSettings(
            *(data, host, port, policy, token, insecure, allowed_hosts, checked, segment_bytes_max),
            door=not no_door,
            engine=engine,
            min_replicas=min_replicas,
            idle_timeout_s=idle_timeout_s,
        )
    )
