"""What is measured: the rows of the benchmark."""

from __future__ import annotations

from functools import partial

from tests.bench import clients
from tests.bench.measure import Row, Target
from tests.bench.peers import resp
from tests.bench.targets import (
    Parking,
    Serving,
    Speech,
    Start,
    blocked,
    growing,
    of_holdfast,
    of_webdis,
    start_beanstalkd,
    start_crowded,
    start_holdfast,
    start_map,
    start_redis,
    start_webdis,
    start_without_door,
    waiters,
    with_client,
    with_wrk,
)
from tests.bench.wrk import Request

CONNECTIONS = (1, 50, 200)
USUAL = 50
PIPELINED = 100
PARKED = 10_000
QUEUED = 1000
"""Values in a queue beforehand: a pop may overtake the push that was sent before it."""

HOLDFAST, NO_DOOR = "Holdfast", "Holdfast, `--no-door`"
WEBDIS, REDIS, BEANSTALKD = "Webdis + Redis", "Redis", "beanstalkd"
GO_1, GO_2 = "Go map, 1 core", "Go map, 2 cores"
NOBODY, CROWDED = "Holdfast, nobody parked", f"Holdfast, {PARKED:,} parked"


def all_rows() -> list[Row]:
    """All of them, in the order of the report."""
    return [
        *(get_or_set(what, connections) for what in ("GET", "SET") for connections in CONNECTIONS),
        *(of_size(what, kib) for kib in (1, 64) for what in ("GET", "SET")),
        pipeline(),
        queue(),
        hand_over(),
        *(parked(what) for what in ("GET", "SET")),
        memory(is_parked=False),
        memory(is_parked=True),
    ]


def asked(name: str, start: Start, speech: Speech, what: str, connections: int = USUAL) -> Target:
    """Somebody who is asked for GET or SET."""
    request = speech.get if what == "GET" else speech.set
    return Target(
        name, partial(with_wrk, start=start, requests=[request], connections=connections, before=[speech.set])
    )


def get_or_set(what: str, connections: int) -> Row:
    """GET or SET of a small value."""
    targets = [
        asked(WEBDIS, start_webdis, of_webdis(), what, connections),
        asked(GO_1, partial(start_map, cores=1), of_holdfast(), what, connections),
    ]
    if connections == USUAL:
        targets.append(asked(GO_2, partial(start_map, cores=2), of_holdfast(), what))
        targets.append(asked(NO_DOOR, start_without_door, of_holdfast(), what))
    targets.append(asked(HOLDFAST, start_holdfast, of_holdfast(), what, connections))
    group = "`GET hello`" if what == "GET" else "Durable `SET hello world`"
    title = f"{connections} connection{'s' if connections > 1 else ''}"
    note = "The map keeps nothing on disk." if what == "SET" else ""
    return Row(f"{what.lower()}-{connections}", group, title, targets, HOLDFAST, note)


def of_size(what: str, kib: int) -> Row:
    """GET or SET of a longer value."""
    value = "x" * (kib * 1024)
    targets = [
        asked(WEBDIS, start_webdis, of_webdis(value), what),
        asked(HOLDFAST, start_holdfast, of_holdfast(value), what),
    ]
    return Row(
        f"{what.lower()}-{kib}k", f"Longer values, {USUAL} connections", f"`{what}`, {kib} KiB", targets, HOLDFAST
    )


def pipeline() -> Row:
    """Many durable SETs in one request, and Webdis's SETs."""
    commands = ", ".join(f'{{"command": "SET key:{number:06} value"}}' for number in range(PIPELINED))
    request = Request("/pipeline", f"[{commands}]", holds="{}")
    ours = partial(with_wrk, start=start_holdfast, requests=[request], connections=USUAL, commands=PIPELINED)
    targets = [asked(WEBDIS, start_webdis, of_webdis(), "SET"), Target(HOLDFAST, ours)]
    group, title = f"Durable `SET`s in `/pipeline`s of {PIPELINED}", f"{USUAL} connections"
    note = "Commands a second. Webdis is asked for one after the other. Latencies are those of a request."
    return Row("pipeline", group, title, targets, HOLDFAST, note)


def queue() -> Row:
    """A push and a pop in turn."""

    def of(name: str, start: Start, speech: Speech) -> Target:
        requests, before = [speech.push, speech.pop], [speech.push] * QUEUED
        return Target(name, partial(with_wrk, start=start, requests=requests, connections=USUAL, before=before))

    workers = partial(clients.put_and_take, connections=USUAL)
    targets = [
        of(WEBDIS, start_webdis, of_webdis()),
        Target(BEANSTALKD, partial(with_client, start=start_beanstalkd, client=workers)),
        of(HOLDFAST, start_holdfast, of_holdfast()),
    ]
    note = (
        "Requests a second, half of them pushes. Webdis: `LPUSH` and `RPOP`. beanstalkd: `put`, and `reserve` with"
        " `delete`, which count as one, by a client in Python."
    )
    return Row("queue", "`QPUSH` and `QPOP` in turn", f"{USUAL} connections", targets, HOLDFAST, note)


def hand_over() -> Row:
    """From a push to the one who waits for it."""

    def of(name: str, start: Start, client: clients.HandOver) -> Target:
        return Target(name, partial(with_client, start=start, client=client))

    targets = [
        of(REDIS, start_redis, clients.redis_hand_over),
        of(BEANSTALKD, start_beanstalkd, clients.beanstalkd_hand_over),
        of(HOLDFAST, start_holdfast, clients.holdfast_hand_over),
    ]
    note = (
        "From the moment the push is sent until the parked client has the value, by raw sockets in Python for all."
        " Redis: `RPUSH` and `BLPOP`, without Webdis. beanstalkd: `put` and `reserve`."
    )
    return Row("hand-over", "Hand-over from `QPUSH` to a parked `BQPOP`", "one at a time", targets, HOLDFAST, note)


def bqpop(server: Serving) -> bytes:
    """Parks at Holdfast for ever."""
    return clients.http((server.host, server.port), "BQPOP nothing", b"").request


def ping(server: Serving) -> bytes:
    """Asks Holdfast for nothing."""
    return clients.http((server.host, server.port), "PING", b"").request


AT_HOLDFAST = Parking(bqpop, waiters)
AT_REDIS = Parking(lambda _: resp("BLPOP", "nothing", "0"), blocked)


def parked(what: str) -> Row:
    """Whether those who wait cost those who work anything."""
    crowded = partial(start_crowded, count=PARKED, parking=AT_HOLDFAST)
    targets = [
        asked(NOBODY, start_holdfast, of_holdfast(), what),
        asked(CROWDED, crowded, of_holdfast(), what),
    ]
    group = f"{USUAL} connections that work while {PARKED:,} of another process are parked in `BQPOP`"
    return Row(f"parked-{what.lower()}", group, f"`{what}`", targets, CROWDED)


def memory(*, is_parked: bool) -> Row:
    """What a connection takes."""
    redis = partial(
        growing,
        start=start_redis,
        count=PARKED,
        ping=lambda _: resp("PING"),
        parking=AT_REDIS if is_parked else None,
    )
    ours = partial(growing, start=start_holdfast, count=PARKED, ping=ping, parking=AT_HOLDFAST if is_parked else None)
    state = "parked" if is_parked else "idle"
    note = f"Growth of the server's resident memory by {PARKED:,} connections; the kernel's share is not in it."
    targets = [Target(REDIS, redis), Target(HOLDFAST, ours)]
    return Row(f"memory-{state}", "Memory of a connection", state, targets, HOLDFAST, note, rounds_max=1)
