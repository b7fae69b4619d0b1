"""Connections to single nodes, by coredis: made, and asked a few things."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ssl import SSLError
from typing import Any, cast

import trio
from coredis.commands.request import CommandRequest
from coredis.connection import TCPConnection, TCPLocation
from coredis.connection._request import RequestBatch
from coredis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError

from engine.redis.endpoint import Address
from engine.redis.errors import ClusterError

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 6.5
"""Without an answer for so long a node counts as gone. A master that was to hand over to its replica, which then did
not get the votes, takes no writes for 5 s, nor anything behind them: that is no reason to break with it.
"""

FRONT_NAME = b"holdfast"
"""The name of fronts' connections, by which CLIENT LIST tells them from others."""

VERSION_MIN = (7, 0)
"""Of Redis: flags of scripts and PEXPIRETIME came with it."""

# coredis logs each failed attempt with a traceback; what an operator has to know is logged by us.
logging.getLogger("coredis").setLevel(logging.CRITICAL)
logging.getLogger("coredis").propagate = False


@dataclass(slots=True)
class Simple:
    """A command as coredis sends it: of its own kind of request it needs no more than these."""

    name: bytes
    serialized_arguments: tuple[bytes | int, ...]
    decode: bool = False


def send(connection: TCPConnection, commands: Sequence[object]) -> RequestBatch:
    """Sends commands as one pipeline.

    Args:
        connection: that is up.
        commands: each with the attributes of `Simple`.

    Returns:
        What to await for the answers, in order; errors stand in their place.

    Raises:
        RedisError: it is broken.
    """
    if not connection._write_buffer_in.statistics().open_receive_streams:  # coredis has not noticed yet
        raise RedisError("the connection is broken")
    return connection.create_request_batch(cast(Sequence[CommandRequest[Any]], commands))


def is_answer(result: object) -> bool:
    """Tells what a node has said, be it an error, from what stands for an answer that never came."""
    return not isinstance(result, Exception) or isinstance(result, (ResponseError, BusyLoadingError))


async def connect(
    address: Address, options: Mapping[str, Any], nursery: trio.Nursery, answer_timeout_s: float = ANSWER_TIMEOUT_S
) -> TCPConnection:
    """Connects to a node and says hello.

    Args:
        address: of the node.
        options: `Endpoint.connection_options`.
        nursery: in which the connection lives, until that is cancelled or the connection breaks.
        answer_timeout_s: see `ANSWER_TIMEOUT_S`.

    Returns:
        The connection; it speaks RESP3 and returns bytes.

    Raises:
        ClusterError: nobody answers there, or lets us in.
    """
    location = TCPLocation(address.host, address.port)
    connection = TCPConnection(location, connect_timeout=CONNECT_TIMEOUT_S, stream_timeout=answer_timeout_s, **options)
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S + answer_timeout_s):
            await nursery.start(connection.run)
    except (RedisError, OSError, TimeoutError, trio.TooSlowError) as error:
        raise fault(address, error) from None
    finally:
        if not connection.usable:
            _close_streams(connection)
    return connection


def check_version(address: Address, connection: TCPConnection) -> None:
    """Refuses a Redis that is too old.

    Raises:
        ClusterError: it is.
    """
    version = (connection.server_version or "0").split(".")
    if tuple(int(part) for part in version[:2] if part.isdigit()) < VERSION_MIN:
        raise ClusterError(f"{address} runs Redis {connection.server_version}, which is too old: it takes 7.0")


def _close_streams(connection: TCPConnection) -> None:
    """Closes what coredis leaves open when it could not connect: anyio complains of it when it is collected."""
    for kind in ("write", "push_message", "streamed_message"):
        for end in ("in", "out"):
            getattr(connection, f"_{kind}_buffer_{end}").close()


async def ask(address: Address, options: Mapping[str, Any], *commands: Simple) -> list[Any]:
    """Connects to a node, has some commands done, and leaves.

    Args:
        address: of the node.
        options: `Endpoint.connection_options`.
        commands: sent as one pipeline.

    Returns:
        The answers; errors stand in their place.

    Raises:
        ClusterError: nobody answers there, or lets us in.
    """
    answers: list[Any] = []
    failure: ClusterError | None = None
    async with trio.open_nursery() as nursery:
        try:
            answers = list(await send(await connect(address, options, nursery), commands))
        except ClusterError as error:
            failure = error
        except RedisError as error:  # it broke between hello and the first question
            failure = fault(address, error)
        nursery.cancel_scope.cancel()
    lost = [answer for answer in answers if not is_answer(answer)]
    if failure is None and lost:
        failure = fault(address, lost[0])
    if failure is not None:
        raise failure
    return answers


def fault(address: Address, error: BaseException) -> ClusterError:
    """Says in one line, without a password, what is wrong with a node."""
    if isinstance(error, AuthenticationError) or "WRONGPASS" in str(error) or "NOAUTH" in str(error):
        return TurnedAway(f"{address} refuses the name or the password")
    if isinstance(error, ResponseError):
        return TurnedAway(f"{address}: {error}")
    text = ""
    cause: BaseException | None = error
    while cause is not None:
        text = _words_of(cause) or text
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__
    return ClusterError(f"{address} does not answer: {text or type(error).__name__}")


def _words_of(error: BaseException) -> str:
    """What an error says; of the system's without numbers and addresses, of which those of TLS are none."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, SSLError):
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return str(error)


class TurnedAway(ClusterError):  # what it is
    """The node does not let us in, nor will it when it is asked again."""
