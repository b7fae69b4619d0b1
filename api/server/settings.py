"""What `holdfast serve` was told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from api.http.access import read_allowed_host as read_allowed_host
from api.http.access import read_token as read_token
from api.http.sockets import KEEP_ALIVE_S as KEEP_ALIVE_S
from engine.embedded.committer import FsyncPolicy
from engine.limits import KIB, MIB, Limits
from engine.redis.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What `holdfast serve` was told.

    Attributes:
        data: the data directory; made when it does not exist. Like `fsync` and `segment_bytes_max` it means nothing
            to a front.
        host: name or address to listen on.
        port: 0 lets the system choose.
        fsync: when commits are synced.
        token: asked of every client; None asks for none.
        insecure: listen beyond loopback without a token.
        allowed_hosts: names besides the bound one that a Host header may have.
        limits: of commands, bodies and memory.
        segment_bytes_max: size at which segments of the log roll; None suits the disk.
        door: whether clients are served by the door, or by Hypercorn alone.
        engine: the Redis that keeps the data; None is the embedded engine.
        min_replicas: how many replicas must have a write before it is answered; for a front only.
        idle_timeout_s: how long a connection may be idle before it is closed.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8080
    fsync: FsyncPolicy = FsyncPolicy.ALWAYS
    token: str | None = None
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    segment_bytes_max: int | None = None
    door: bool = True
    engine: Endpoint | None = None
    min_replicas: int = 0
    idle_timeout_s: float = KEEP_ALIVE_S


class StartError(Exception):
    """The server cannot start as it was told to."""


NEVER_FITS = "one of that size never fits"


def conflicts(limits: Limits) -> Iterator[tuple[str, str]]:
    """Yields limits that contradict others: what one of them promises, another always refuses.

    Yields:
        The field of `Limits` that is wrong, and words that follow its name.
    """
    key, value, body = limits.key_bytes_max, limits.value_bytes_max, limits.body_bytes_max
    memory = limits.memory_bytes_max
    rows = (
        ("key_bytes_max", key >= body, f"not less than --max-body, {size_text(body)}", "no request can hold it"),
        ("value_bytes_max", value >= body, f"not less than --max-body, {size_text(body)}", "no request can hold it"),
        ("memory_bytes_max", memory is not None and memory < key, f"less than --max-key, {size_text(key)}", NEVER_FITS),
        (
            *("memory_bytes_max", memory is not None and memory < value),
            *(f"less than --max-value, {size_text(value)}", NEVER_FITS),
        ),
        ("bodies_bytes_max", limits.bodies_bytes_max < body, f"less than --max-body, {size_text(body)}", NEVER_FITS),
        ("answer_bytes_max", limits.answer_bytes_max < value, f"less than --max-value, {size_text(value)}", NEVER_FITS),
    )
    for name, is_wrong, how, why in rows:
        if is_wrong:
            advice = "raise this, or lower that" if how.startswith("less") else "lower this, or raise that"
            yield name, f"{size_text(getattr(limits, name))} is {how}: {why}; {advice}"


def size_text(size_bytes: int) -> str:
    """A number of bytes as a person would write it."""
    for unit, name in ((1024 * MIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return str(size_bytes)
