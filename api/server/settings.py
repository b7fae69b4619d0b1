"""What `holdfast serve` was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engine.embedded.committer import FsyncPolicy
from engine.limits import Limits
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


class StartError(Exception):
    """The server cannot start as it was told to."""
