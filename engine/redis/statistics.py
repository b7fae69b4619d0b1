"""The numbers a front tells about itself; `/stats` shows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClusterStatistics:
    """A snapshot of a front's numbers; milliseconds as the names say, counts since the start.

    Attributes:
        keys: in the whole cluster, queues included, at the last look some seconds ago.
        masters, masters_up: nodes that own slots, and those of them that can be reached.
        waiters: clients parked in a BQPOP.
        mailbox: commands under way.
        commands: that came.
        round_trips, requests_per_round_trip: pipelines to single masters, and how well they are shared.
        round_trip_p50_ms, round_trip_p99_ms: duration of the last thousand.
        redirections, retries: requests that a node has sent on to another, or that were tried again.
        connections_lost: to masters, attempts that failed included.
        returned_values, owed_values: pops undone because the client was gone; those that are still to be undone.
        uptime_s: since the start.
    """

    keys: int
    masters: int
    masters_up: int
    waiters: int
    mailbox: int
    commands: int
    round_trips: int
    requests_per_round_trip: float
    round_trip_p50_ms: float
    round_trip_p99_ms: float
    redirections: int
    retries: int
    connections_lost: int
    returned_values: int
    owed_values: int
    uptime_s: float
