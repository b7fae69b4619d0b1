"""One command for one node, on its way there and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.redis.scripts import Script


@dataclass(slots=True, eq=False)
class Request:
    """A Redis command. By its first three attributes coredis takes it for one of its own requests.

    Attributes:
        name: of the command.
        serialized_arguments: the words behind it.
        decode: never: values are bytes.
        slot: whose master it is for.
        done: called once, with the answer or an exception: an error of Redis, or one of `engine.redis.errors`. It must
            not raise.
        writes: whether it may change something, so that replicas have to follow.
        insists: whether it is sent even while too few replicas are there to follow.
        tracked: whether Redis shall tell the connection when a key changes that this reads.
        divisible: whether it can be asked key by key, when a slot is being moved and its keys are in two places.
        asking: whether it was sent on by a node that is moving its slot away.
        sent_on: how often it was sent on, or tried again.
    """

    name: bytes
    serialized_arguments: tuple[bytes | int, ...]
    slot: int
    done: Callable[[Any], None]
    writes: bool = False
    insists: bool = False
    tracked: bool = False
    divisible: bool = False
    asking: bool = False
    sent_on: int = 0
    decode: bool = False


def script_call(
    script: Script,
    keys: tuple[bytes, ...],
    arguments: tuple[bytes | int, ...],
    slot: int,
    done: Callable[[Any], None],
    *,
    writes: bool = True,
    insists: bool = False,
    tracked: bool = False,
) -> Request:
    """Makes the request that runs a script on keys of one slot."""
    words = (script.digest, len(keys), *keys, *arguments)
    return Request(b"EVALSHA", words, slot, done, writes, insists, tracked)
