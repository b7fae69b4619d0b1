"""The numbers an engine tells about itself; `/stats` shows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of the engine's numbers; milliseconds and bytes as the names say, counts since the start."""

    keys: int
    queues: int
    waiters: int
    mailbox: int
    memory_bytes: int
    log_bytes: int
    snapshot_bytes: int
    disk_bytes: int
    disk_full: int
    log_excess_bytes: int
    lsn: int
    commands: int
    commits: int
    records_per_commit: float
    commit_p50_ms: float
    commit_p99_ms: float
    checkpoints: int
    checkpoint_failures: int
    expired_keys: int
    returned_values: int
    uptime_s: float
